"""Slack messages: what a run's facts look like as Block Kit. Pure functions; `notices` delivers.

Everything that comes from data is struck of secrets, escaped, cut to Slack's limits, and can name nobody (`<!channel>`,
`@here`): the limits are https://docs.slack.dev/reference/block-kit/blocks, the escapes are
https://docs.slack.dev/messaging/formatting-message-text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

HEADER_CHARACTERS = 150
FIELD_CHARACTERS = 2000
TEXT_CHARACTERS = 4000
"""Slack's limits; a longer text makes it refuse the whole message."""

TASKS_SHOWN = 5
NAMES_SHOWN = 12
ERROR_CHARACTERS = 900
"""Enough for the last words of a command; the log link leads to the rest."""

READ_CHARACTERS = 4_000
"""Far more than is shown, so that no secret is cut in two before it is recognised."""

ADDRESS_CHARACTERS = 900
"""Three of them fit into a section; a longer one is left out."""

STRUCK = "***"

Block = dict[str, Any]


@dataclass(frozen=True)
class Message:
    """A message as Slack takes it: the text is what notifications and screen readers say, the blocks what is seen."""

    text: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class FailedTask:
    """A task whose last try failed.

    Args:
        name: task id, with the index of a mapped task.
        tries: how many tries it has at most.
        error: its exception or a command's last words; empty where its process left none.
    """

    name: str
    try_number: int
    tries: int
    seconds: float | None
    error: str
    log_url: str


@dataclass(frozen=True)
class Run:
    """A run that has ended, or should have.

    Args:
        episode: how often the run was cleared; a run that fails again after that is a failure of its own.
        reason: why it ended, where its tasks do not say it: "timed out", "marked as failed by ada".
        not_run: tasks that did not run because of the failed ones.
        report_url: of the quality gate; empty where the run did not get so far.
        runbook: address of what to do, or its path in the repository.
    """

    environment: str
    dag_id: str
    run_id: str
    url: str
    runbook: str
    episode: int = 0
    interval: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    reason: str = ""
    report_url: str = ""
    failed: tuple[FailedTask, ...] = ()
    not_run: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quarantine:
    """What the quality gate of a run refused; `reasons` are rows by reason."""

    rows: int
    quarantined: int
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.quarantined / self.rows if self.rows else 0.0


def failure(run: Run) -> Message:
    """The one message of a failed run."""
    shown, more = run.failed[:TASKS_SHOWN], len(run.failed) - TASKS_SHOWN
    if run.failed:
        what = f"{run.failed[0].name}: {_first_line(redacted(run.failed[0].error)) or 'no error was recorded'}"
    else:
        what = run.reason or "no task of it failed"
    blocks = [_header(f"🔴 {run.dag_id} failed"), _facts(run)]
    if run.reason:
        blocks.append(_section(f"The run was {_fitting(redacted(run.reason), 500)}."))
    blocks += [_task(task) for task in shown]
    if more > 0:
        blocks.append(_context(f"and {more} more failed tasks"))
    if run.not_run:
        blocks.append(_context(f"Not run because of it: {_names(run.not_run)}"))
    return _message(f"🔴 {run.dag_id} failed in {run.environment}: {what}", [*blocks, _links(run)])


def recovery(run: Run, failed_runs: Sequence[str]) -> Message:
    """A run succeeded after failures that were told.

    Args:
        run: the one that succeeded.
        failed_runs: ids of the failed ones, newest first; the run itself among them if it was cleared.
    """
    others = [run_id for run_id in failed_runs if run_id != run.run_id]
    says = "The failed run was cleared and has succeeded." if len(others) < len(failed_runs) else ""
    blocks = [_header(f"🟢 {run.dag_id} recovered"), _facts(run)]
    if says:
        blocks.append(_section(says))
    if others:
        blocks.append(
            _section(
                f"Failed before it, and not repeated by this run: {_names(others)}. "
                "Clear the one whose interval is still missing."
            )
        )
    return _message(
        f"🟢 {run.dag_id} recovered in {run.environment}: run {run.run_id} succeeded", [*blocks, _links(run)]
    )


def quarantine(run: Run, refused: Quarantine) -> Message:
    """A run in which the quality gate refused more rows than usual, and went on."""
    reasons = sorted(refused.reasons.items(), key=lambda item: -item[1])
    lines = [f"• {rows:,} × {_fitting(_one_line(redacted(reason)), 400)}" for reason, rows in reasons[:TASKS_SHOWN]]
    if len(reasons) > TASKS_SHOWN:
        lines.append(f"• and {len(reasons) - TASKS_SHOWN} other reasons")
    says = f"{refused.quarantined:,} of {refused.rows:,} rows were quarantined ({refused.share:.1%})"
    blocks = [_header(f"🟠 {run.dag_id}: rows quarantined"), _facts(run), _section(f"*{says}*; the others went on.")]
    if lines:
        blocks.append(_section("\n".join(lines)))
    return _message(f"🟠 {run.dag_id} in {run.environment}: {says}", [*blocks, _links(run)])


def missed_deadline(run: Run, deadline: datetime) -> Message:
    """A run that has not ended by its deadline."""
    says = f"The run has not ended by {_time(deadline)}. It goes on; its end will be told only if it fails."
    blocks = [_header(f"🟠 {run.dag_id} missed its deadline"), _facts(run), _section(says)]
    text = f"🟠 {run.dag_id} in {run.environment}: run {run.run_id} has not ended by {_time(deadline)}"
    return _message(text, [*blocks, _links(run)])


def escaped(text: str) -> str:
    """Text that Slack shows as it is, and that can mention nobody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), STRUCK),
    # A password may hold anything but white space: up to the last @ of the word.
    (re.compile(r"(?<=://)[^\s/:@]*:\S*@"), f"{STRUCK}@"),
    (re.compile(r"(?<=://)[^\s/@]+@"), f"{STRUCK}@"),
    (re.compile(r"(?i)(hooks\.slack\.com/\w+)/[\w/-]+"), rf"\1/{STRUCK}"),
    (re.compile(r"\b(?:xox[a-z]|xapp)-[\w-]+"), STRUCK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), STRUCK),
    (re.compile(r"\bgh[a-z]_\w{20,}"), STRUCK),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?"), STRUCK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {STRUCK}"),
    (
        re.compile(
            r"(?i)([\w.-]{0,40}(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|credential)[\w.-]{0,40}[\"']?\s*[:=]\s*)"
            r"(\"[^\"]*\"|'[^']*'|[^\s\"',;&)}\]]+)"
        ),
        rf"\1{STRUCK}",
    ),
)


_BACKTICKS = str.maketrans("`", "ˋ")
"""A backtick of the data would begin or end a piece of code."""


def redacted(text: str, secrets: Collection[str] = ()) -> str:
    """Text without credentials: those given, and whatever looks like one. Only its beginning is read."""
    text = text[:READ_CHARACTERS]
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, STRUCK)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def cut(text: str, limit: int) -> str:
    """Text of at most `limit` characters; an ellipsis says that there was more."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def _message(text: str, blocks: Iterable[Block]) -> Message:
    return Message(_fitting(redacted(_one_line(text)), TEXT_CHARACTERS), tuple(blocks))


def _header(text: str) -> Block:
    return {
        "type": "header",
        "text": {"type": "plain_text", "text": cut(redacted(_one_line(text)), HEADER_CHARACTERS), "emoji": False},
    }


def _facts(run: Run) -> Block:
    facts = {"Environment": run.environment, "Run": run.run_id}
    if run.interval:
        facts["Interval"] = run.interval
    if run.started and run.ended:
        facts["Duration"] = duration((run.ended - run.started).total_seconds())
    if run.ended:
        facts["Ended"] = _time(run.ended)
    elif run.started:
        facts["Started"] = _time(run.started)
    return {
        "type": "section",
        "fields": [
            _mrkdwn(f"*{name}*\n{_fitting(redacted(value), FIELD_CHARACTERS - 100)}") for name, value in facts.items()
        ],
    }


def _task(task: FailedTask) -> Block:
    about = [f"*{_fitting(task.name, 300)}*", f"try {task.try_number} of {max(task.try_number, task.tries)}"]
    if task.seconds is not None:
        about.append(duration(task.seconds))
    if task.log_url:
        about.append(_link(task.log_url, "Log"))
    head = " · ".join(about)
    if not task.error.strip():
        return _section(f"{head}\nIt left no error: its process was killed or lost. The log has its last lines.")
    error = redacted(task.error.strip())
    return _section(f"{head}\n```{_fitting(error, ERROR_CHARACTERS)}```")


def _links(run: Run) -> Block:
    links = [_link(run.url, "Run")]
    if run.report_url:
        links.append(_link(run.report_url, "Report"))
    if run.runbook.startswith(("http://", "https://")):
        links.append(_link(run.runbook, "Runbook: what to do"))
    else:
        links.append(f"Runbook: `{_fitting(run.runbook, 300)}`")
    return _section(" · ".join(links))


def _link(url: str, text: str) -> str:
    # Whatever ends or divides a link in Slack's notation must not stand in the address.
    address = quote(url, safe="%/:=&?~#+!$,;'@()*[]").replace("&", "&amp;")
    return f"<{address}|{text}>" if len(address) <= ADDRESS_CHARACTERS else text


def _section(text: str) -> Block:
    return {"type": "section", "text": _mrkdwn(text)}


def _context(text: str) -> Block:
    return {"type": "context", "elements": [_mrkdwn(text)]}


def _mrkdwn(text: str) -> Block:
    # Verbatim: Slack makes no links, channels or mentions of what merely looks like one.
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{_fitting(redacted(name), 100)}`" for name in names[:NAMES_SHOWN])
    return f"{shown} and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown


def _fitting(text: str, limit: int) -> str:
    """Escaped text of at most `limit` characters; no escape is cut in two, and no piece of code is opened."""
    text = text.translate(_BACKTICKS)
    whole = escaped(text)
    if len(whole) <= limit:
        return whole
    kept, length = [], 0
    for character in text:
        piece = escaped(character)
        if length + len(piece) >= limit:
            break
        kept.append(piece)
        length += len(piece)
    return f"{''.join(kept).rstrip()}…"


def duration(seconds: float) -> str:
    """How long, for people: 0.8 s, 42 s, 3 min 5 s, 1 h 2 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _first_line(text: str) -> str:
    return cut(_one_line(text.strip().partition("\n")[0]), 300)


def _one_line(text: str) -> str:
    return " ".join(text.split())
