"""What is done to the platform in a drill, and how it is undone.

Whatever is struck is healed by the drill that struck it, however that ends, and by `restore`, which needs to know
nothing of the drill: a run's clean-up calls it for one that was killed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.errors import UnavailableError
from marketdata.lakehouse import open_lakehouse
from marketdata.operations import proof
from marketdata.operations.drill import Stage, until
from marketdata.operations.relay import relay
from marketdata.operations.work import Looking, Task, Work
from marketdata.settings import Settings, endpoint_file
from marketdata.streaming.brokers import bounds, reach

if TYPE_CHECKING:
    import psutil


class Disruption(Protocol):
    """Something to be struck and healed."""

    def impossible(self, settings: Settings) -> str:
        """Why it cannot be done to these engines from here; empty where it can."""

    def strike(self, here: Stage) -> str:
        """Do it; says what was done."""

    def heal(self, here: Stage) -> str:
        """Undo it; safe to repeat, and where nothing was struck. Says what was done."""


class ConsumerKilled:
    """SIGKILL of the drill's own consumer that has the most to do; started again at once, as a cluster would."""

    def impossible(self, settings: Settings) -> str:  # noqa: ARG002 - it touches nothing but the drill's own
        return ""

    def strike(self, here: Stage) -> str:
        owner = here.watch.busiest_owner()
        victim = next(member for member in here.group if member.name == owner)
        victim.kill()
        return f"consumer {owner}, which had the most to do, was killed (SIGKILL)"

    def heal(self, here: Stage) -> str:
        for member in here.group:
            member.start()
        return "the consumer was started again"


class BrokerKilled:
    """SIGKILL of the embedded Kafka, which is then started again on its data."""

    def impossible(self, settings: Settings) -> str:
        return _not_embedded(settings)

    def strike(self, here: Stage) -> str:
        _broker(here.own).kill()
        return "the broker was killed (SIGKILL)"

    def heal(self, here: Stage) -> str:
        restore(here.own)
        return "the broker answers again"


class BrokerFrozen:
    """SIGSTOP of the embedded Kafka: connections stay, nothing is answered, as when a network is cut."""

    def impossible(self, settings: Settings) -> str:
        return _not_embedded(settings)

    def strike(self, here: Stage) -> str:
        _broker(here.own).suspend()
        return "the broker was cut off (SIGSTOP: its connections stay, nothing is answered)"

    def heal(self, here: Stage) -> str:
        restore(here.own)
        return "the broker can be reached again"


@runtime_checkable
class Interruption(Protocol):
    """Something that is done to a task in the middle of its work."""

    def impossible(self, settings: Settings) -> str:
        """Why it cannot be done to these engines from here; empty where it can."""

    def interrupt(self, here: Work, hold: float, within: float) -> dict[str, float | None]:
        """Let a task work, interrupt it, and see it done; the figures.

        Args:
            hold: seconds it lasts.
            within: seconds it may take; waited for is twice as long, so that what was too slow is measured too.

        Raises:
            MarketdataError: an engine is gone, or the task could not be interrupted in its middle.
        """


class TaskEvicted:
    """SIGTERM, and SIGKILL where that is not enough, in the middle of a transaction; then another try."""

    def impossible(self, settings: Settings) -> str:  # noqa: ARG002 - it touches nothing but the drill's own
        return ""

    def interrupt(self, here: Work, hold: float, within: float) -> dict[str, float | None]:  # noqa: ARG002 - over at once
        cluster, topic = reach(here.own), here.own.kafka_topic

        def arrived() -> int:
            return sum(end for _, end in bounds(cluster, topic).values())

        with here.task("publish") as task:
            _in_the_middle(task, lambda: arrived() > 0)
            struck = here.note("the task was told to end, as one whose pod is evicted (SIGTERM)")
            task.evict()
            here.note(f"it was gone, with {arrived():,} messages in a transaction that was not committed")
            recovery = _recovery(here, task, struck, within)
        return {"recovery_seconds": recovery, "tries": task.tries, **proof.prove_topic(here.own, here.sent)}


class TrinoAway:
    """The way from a load to Trino is cut while it merges, and nobody else's."""

    def impossible(self, settings: Settings) -> str:
        return "" if settings.trino_host else "pyiceberg loads here, and no Trino (TRINO_HOST)"

    def interrupt(self, here: Work, hold: float, within: float) -> dict[str, float | None]:
        own = here.own
        with relay(own.require("trino_host"), own.trino_port, b"MERGE INTO") as way, Looking(own) as looking:
            cut_off = own.model_copy(update={"trino_host": "127.0.0.1", "trino_port": way.port})
            with here.task("load", cut_off) as task:
                _in_the_middle(task, way.marked.is_set)
                way.cut()
                here.note("the task's way to Trino was cut while it merged")
                if until(task.done, hold):
                    raise UnavailableError("the load was done before it could be struck; nothing was shown")
                way.heal()
                healed = here.note("the task can reach Trino again")
                recovery = _recovery(here, task, healed, within)
        held = open_lakehouse(own).query(f"SELECT record_id, price FROM {COMMODITY_PRICES.name}")  # noqa: S608
        return {
            "recovery_seconds": recovery,
            "tries": task.tries,
            "partial": len(looking.counts - {0, len(here.sent)}),
            **proof.prove_table(here.sent, held),
        }


MIDDLE_SECONDS = 60.0
"""For a task to come to the middle of its work; a cold machine imports for a while."""


def _in_the_middle(task: Task, there: Callable[[], bool]) -> None:
    if not until(lambda: there() or not task.running(), MIDDLE_SECONDS) or not task.running():
        raise UnavailableError(f"the task was not in the middle of its work{task.said()}; nothing was disrupted")


def _recovery(here: Work, task: Task, since: float, within: float) -> float | None:
    if not until(task.done, 2 * within):
        return None
    return here.note(f"the task was done, at its try {task.tries}") - since


class Elsewhere:
    """What cannot be struck from a drill's process, wherever that runs.

    Args:
        reason: why, and what shows it instead.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def impossible(self, settings: Settings) -> str:  # noqa: ARG002
        return self._reason

    def strike(self, here: Stage) -> str:
        raise NotImplementedError(self._reason)

    heal = strike


def restore(settings: Settings) -> Settings:
    """Bring back the embedded Kafka where it was frozen or killed; nothing where the brokers are others'.

    Returns:
        the settings with its address, which nobody is told while it starts.

    Raises:
        UnavailableError: it does not start.
    """
    if find_spec("psutil") is None:
        return settings
    from marketdata import engines
    from marketdata.engines import endpoints

    record = endpoints.read(endpoint_file()).engines.get("kafka")
    if record is None:
        return settings
    if process := record.process and record.process.find():
        process.resume()
    return engines.up(settings, ["kafka"])


def _not_embedded(settings: Settings) -> str:
    if find_spec("psutil") is not None:
        from marketdata.engines import endpoints

        record = endpoints.read(endpoint_file()).engines.get("kafka")
        if record and record.process and record.process.find() and record.address == settings.kafka_brokers:
            return ""
    return (
        "the brokers were not started by `marketdata engines up` on this machine, and a drill has no right to end or "
        "cut off others"
    )


def _broker(settings: Settings) -> psutil.Process:
    from marketdata.engines import endpoints

    record = endpoints.read(endpoint_file()).engines["kafka"]
    process = record.process.find() if record.process else None
    if process is None or record.address != settings.kafka_brokers:
        raise RuntimeError("the embedded Kafka has gone since the drill began")
    return process
