"""The chaos scenarios: what is struck, for how long, and how soon all is well again (specification, R5.6 to R5.9)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from marketdata.errors import UnavailableError, UsageError
from marketdata.operations.disruptions import (
    BrokerFrozen,
    BrokerKilled,
    ConsumerKilled,
    Disruption,
    Elsewhere,
    Interruption,
    TaskEvicted,
    TrinoAway,
)
from marketdata.operations.drill import Outcome, Stage, finish, measured, stage, until
from marketdata.operations.judge import NOTHING_LOST, Threshold, each_once, judge
from marketdata.operations.profiles import LAG_SECONDS
from marketdata.operations.work import work
from marketdata.settings import Settings

RATE = 1_000
"""Messages a second while something is disrupted."""

STEADY_SECONDS = 60.0
"""For traffic and consumers to come to a steady state; nothing is disrupted before."""

CALM_SECONDS = 3.0
"""How long the traffic goes on, before the disruption and after the recovery."""


@dataclass(frozen=True)
class Scenario:
    """A disruption and its bound.

    Args:
        within: seconds until everything is well again.
        hold: seconds between strike and heal.
        from_heal: the bound counts from the healing, not from the strike.
        shared: it strikes what others use too; left alone in a dry run.
        proof: what decides beside the time.
    """

    name: str
    doc: str
    disruption: Disruption | Interruption
    within: float = 0.0
    hold: float = 0.0
    from_heal: bool = False
    shared: bool = True
    proof: tuple[Threshold, ...] = NOTHING_LOST

    @property
    def judged_by(self) -> tuple[Threshold, ...]:
        since = "healing" if self.from_heal else "disruption"
        well = "the task was done" if isinstance(self.disruption, Interruption) else "every record flows in time again"
        return (Threshold("recovery_seconds", f"From the {since} until {well}", "<", self.within, "s"), *self.proof)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "consumer-crash", "A consumer is killed in the middle of its work (R5.6)",
            ConsumerKilled(), within=30, shared=False,
        ),
        Scenario("broker-failure", "A broker is killed and comes back (R5.7)", BrokerKilled(), within=60, hold=3),
        Scenario(
            "network-partition", "A broker cannot be reached for 15 seconds (R5.8)",
            BrokerFrozen(), within=60, hold=15, from_heal=True,
        ),
        Scenario(
            "trino-down", "A load cannot reach Trino for 10 seconds, from the middle of its MERGE on (R5.9)",
            TrinoAway(), within=60, hold=10, from_heal=True, shared=False,
            proof=(
                *each_once("table", "Records of the batch"),
                Threshold("partial", "Looks at the table that saw a part of the batch", "<=", 0),
            ),
        ),
        Scenario(
            "gateway-down", "Pushgateway and Slack are away (R5.9)",
            Elsewhere(
                "Airflow's plugins call them, not a task; tests/engines/test_run_metrics.py takes the gateway away"
            ),
        ),
        Scenario(
            "task-evicted", "A task is told to end in the middle of its transaction, and tried again (R5.9)",
            TaskEvicted(), within=60, shared=False, proof=each_once("topic", "Records of the batch"),
        ),
        Scenario(
            "scheduler-restart", "The scheduler is restarted while a pod works (R5.9)",
            Elsewhere(
                "tasks have no access to the cluster's API; tests/kubernetes/test_operator_airflow.py kills it"
            ),
        ),
    )
}  # fmt: skip


def scenarios(names: str) -> list[Scenario]:
    """Those named, separated by commas, or all.

    Raises:
        UsageError: there is none of a name.
    """
    wanted = list(SCENARIOS) if names == "all" else names.split(",")
    if unknown := [name for name in wanted if name not in SCENARIOS]:
        raise UsageError(f"no scenario is named {', '.join(unknown)}", f"scenarios: all, {', '.join(SCENARIOS)}")
    return [SCENARIOS[name] for name in wanted]


def disrupt(settings: Settings, scenario: Scenario, run_id: str, consumers: int, *, dry_run: bool) -> Outcome:
    """Disrupt the platform under a steady load, heal it, and judge how soon it was well and whether anything was lost.

    Raises:
        MarketdataError: an engine is gone, or was not well before anything was disrupted.
    """
    why = scenario.disruption.impossible(settings)
    if not why and dry_run and scenario.shared:
        why = "dry run: it would strike what others use too"
    if why:
        return Outcome(scenario.name, scenario.doc, why=why)
    if isinstance(scenario.disruption, Interruption):
        return _interrupted(settings, scenario, scenario.disruption, run_id)
    return _under_load(settings, scenario, scenario.disruption, run_id, consumers)


def _interrupted(settings: Settings, scenario: Scenario, interruption: Interruption, run_id: str) -> Outcome:
    with work(settings, run_id, scenario.name) as here:
        figures = interruption.interrupt(here, scenario.hold, scenario.within)
    return Outcome(scenario.name, scenario.doc, "", judge(scenario.judged_by, figures), figures, tuple(here.events))


def _under_load(settings: Settings, scenario: Scenario, disruption: Disruption, run_id: str, consumers: int) -> Outcome:
    with stage(settings, run_id, scenario.name, consumers, count=None, rate=RATE) as here:
        here.traffic.start()
        recovery = _struck(here, scenario, disruption)
        time.sleep(CALM_SECONDS)
        here.traffic.stop()
        finish(here)
        figures = {"recovery_seconds": recovery, **measured(here)}
        samples, events = tuple(here.watch.samples), tuple(here.events)
    return Outcome(scenario.name, scenario.doc, "", judge(scenario.judged_by, figures), figures, events, samples)


def _struck(here: Stage, scenario: Scenario, disruption: Disruption) -> float | None:
    """Strike, hold, heal; seconds until all was well, None where it was not in time."""

    def steady() -> bool:
        return here.ready() and here.watch.last.seconds > CALM_SECONDS and here.watch.last.stored > 0 and in_time(here)

    if not until(steady, STEADY_SECONDS):
        raise UnavailableError(
            f"the consumers were not in time within {STEADY_SECONDS:.0f} s; nothing was disrupted",
            "see what else this machine does",
        )
    ends = dict(here.traffic.ends)
    try:
        struck = here.note(disruption.strike(here))
        ends = dict(here.traffic.ends)
        time.sleep(scenario.hold)
    finally:
        says = disruption.heal(here)
    healed = here.note(says)
    since = healed if scenario.from_heal else struck
    # Waited for longer than allowed, so that what was too slow is measured too.
    if not until(lambda: recovered(here, ends, healed), 2 * scenario.within):
        return None
    return here.note("every record flows in time again") - since


def in_time(here: Stage) -> bool:
    """Whether no record waits too long for the consumers (R4.2)."""
    return here.watch.last.lag_seconds < LAG_SECONDS


def recovered(here: Stage, ends: dict[int, int], healed: float) -> bool:
    """Whether messages are acknowledged again, and each partition's consumer has stored what came after the strike."""
    ready = here.ready()  # whatever else holds: it starts again who has ended by itself
    moved = {partition: end for partition, end in here.traffic.ends.items() if end > ends.get(partition, 0)}
    return (
        ready
        and here.traffic.last_acknowledged > healed
        and bool(moved)
        and all(here.watch.stored.get(partition, 0) > ends.get(partition, 0) for partition in moved)
        and in_time(here)
    )
