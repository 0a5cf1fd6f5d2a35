"""What can go wrong, and whose fault it is: each error is one line for people and one exit code for the scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


def printable(text: str) -> str:
    """Text that came in, as one line that means nothing to a terminal: control characters are written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


class MarketdataError(Exception):
    """An error a person can act on.

    Args:
        message: what was wrong and where (file, row, offset), and what was left untouched; one line.
        remedy: what to do about it; one line, may be empty.
        result: what the step hands over although it failed, e.g. the report that says why.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, remedy: str = "", result: Mapping[str, Any] | None = None) -> None:
        super().__init__(printable(message))
        self.message = printable(message)
        self.remedy = printable(remedy)
        self.result = dict(result or {})

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class UsageError(MarketdataError):
    """A setting or an argument is missing or wrong; repeating the same call fails again."""

    exit_code = 64


class BadDataError(MarketdataError):
    """The data itself is refused; the same data fails again."""

    exit_code = 65


class UnavailableError(MarketdataError):
    """A dependency is down; a later try may succeed."""

    exit_code = 69


class TryLaterError(MarketdataError):
    """Somebody else holds what this step needs, or has fenced it; a later try succeeds."""

    exit_code = 75


NO_RETRY = frozenset({UsageError.exit_code, BadDataError.exit_code})
"""Exit codes after which another try is pointless."""
