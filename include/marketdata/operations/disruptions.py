"""What is done to the platform in a drill, and how it is undone.

Whatever is struck is healed by the drill that struck it, however that ends, and by `restore`, which needs to know
nothing of the drill: a run's clean-up calls it for one that was killed.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from marketdata.operations.drill import Stage
from marketdata.settings import Settings, endpoint_file

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
