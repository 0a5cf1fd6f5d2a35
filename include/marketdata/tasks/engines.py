"""`marketdata engines`: start, stop and list the embedded engines of this laptop."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from marketdata import engines
from marketdata.settings import Settings
from marketdata.streaming import topics
from marketdata.tasks.screen import console
from marketdata.tasks.turns import turn

_STYLES = {"running": "green", "dead": "red", "stopped": "dim"}


def up(settings: Settings, *, airflow: bool) -> None:
    """Start what is not running, create the topics, and say where everything is."""
    screen = console()
    names = ["kafka", "postgres", "airflow"] if airflow else ["kafka", "postgres"]
    with turn(settings, screen), screen.status("starting the engines") as status:
        running = engines.up(settings, names, say=status.update)
        topics.apply(running)
    _list(running, screen)


def down(settings: Settings) -> None:
    """Stop the engines that were started from here."""
    stopped = engines.down(settings)
    console().print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def status(settings: Settings) -> None:
    """List the engines."""
    _list(settings, console())


def _list(settings: Settings, screen: Console) -> None:
    table = Table("engine", "version", "state", "address", "pid", header_style="bold", box=None, pad_edge=False)
    known = engines.status(settings)
    for engine in known:
        state = f"[{_STYLES.get(engine.state, 'default')}]{engine.state}"
        table.add_row(engine.name, engine.version, state, engine.address, str(engine.pid or ""))
    screen.print(table)
    for engine in known:
        if engine.state == "dead":
            screen.print(f"{engine.name} died; its log: {engine.log}", soft_wrap=True)
        if engine.name == "airflow-api-server" and engine.state == "running":
            screen.print(f"Airflow UI: http://{engine.address}", soft_wrap=True)
