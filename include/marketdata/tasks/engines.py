"""`marketdata engines`: start, stop and list the embedded engines of this laptop."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from marketdata import engines
from marketdata.settings import Settings
from marketdata.streaming import topics


def up(settings: Settings, *, airflow: bool) -> None:
    """Start what is not running, create the topics, and say where everything is."""
    console = Console()
    names = ["kafka", "postgres", "airflow"] if airflow else ["kafka", "postgres"]
    with console.status("starting the engines") as status:
        running = engines.up(settings, names, say=status.update)
    topics.apply(running)
    _list(running, console)


def down(settings: Settings) -> None:
    """Stop the engines that were started from here."""
    stopped = engines.down(settings)
    Console().print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def status(settings: Settings) -> None:
    """List the engines."""
    _list(settings, Console())


def _list(settings: Settings, console: Console) -> None:
    table = Table("engine", "version", "state", "address", "pid", "log", header_style="bold")
    for engine in engines.status(settings):
        table.add_row(
            engine.name, engine.version, engine.state, engine.address, str(engine.pid or ""), str(engine.log or "")
        )
    console.print(table)
