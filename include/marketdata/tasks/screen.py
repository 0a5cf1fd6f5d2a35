"""The one console of the command line: as wide as the terminal, and wide enough where there is none."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from marketdata.errors import printable

WIDTH_WITHOUT_TERMINAL = 120


def console() -> Console:
    """A console on standard output."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)


def plain(text: object) -> str:
    """Text that came in, for the console: neither its brackets nor its control characters mean anything."""
    return escape(printable(str(text)))
