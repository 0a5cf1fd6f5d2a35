"""The command line `marketdata`: what pods run, and what people use beside the Airflow UI."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from marketdata import datasets, settings
from marketdata.batches import Interval, Lake
from marketdata.errors import MarketdataError, UsageError
from marketdata.observability import logs, runs
from marketdata.settings import Settings

if TYPE_CHECKING:
    from marketdata.datasets import Dataset

log = logging.getLogger("marketdata")


LAPTOP_ONLY = frozenset({"filelock", "psutil"})
"""What the commands that start engines need, and no image has."""


class _OneLineErrors(TyperGroup):
    """An error is one line with its remedy; the traceback goes to the log; the exit code says whose fault it is."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return self._invoke(ctx)
        except MarketdataError as error:
            log.error("%s", error, exc_info=True)
            typer.echo(f"error: {error.message}", err=True)
            if error.remedy:
                typer.echo(f"  fix: {error.remedy}", err=True)
            raise typer.Exit(error.exit_code) from None

    def _invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if error.name not in LAPTOP_ONLY:
                raise
            raise UsageError(
                f"this installation has no embedded engines ({error.name} is missing); nothing was started",
                "set the engines' addresses, e.g. KAFKA_BROKERS; on a laptop: make setup",
            ) from error


app = typer.Typer(
    name="marketdata",
    cls=_OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Market-data pipelines: run them, look at what they did, and ask the lake.",
    epilog='Examples: [b]marketdata run[/b] · [b]marketdata query "SELECT * FROM commodity_prices LIMIT 5"[/b] · '
    "[b]marketdata topics read commodity-prices[/b]",
)
topics_app = typer.Typer(no_args_is_help=True, help="Kafka topics as code: compare, create, read back.")
engines_app = typer.Typer(no_args_is_help=True, help="The embedded engines of this laptop: Kafka, PostgreSQL, Airflow.")
dlq_app = typer.Typer(no_args_is_help=True, help="Messages the streaming consumer could not read.")
runs_app = typer.Typer(no_args_is_help=True, help="What runs did, step by step.")
app.add_typer(topics_app, name="topics", rich_help_panel="For people")
app.add_typer(engines_app, name="engines", rich_help_panel="For people")
app.add_typer(dlq_app, name="dlq", rich_help_panel="For people")
app.add_typer(runs_app, name="runs", rich_help_panel="For people")

STEPS = "Steps (what the pods run)"
SERVICES = "Services (what runs all the time)"
DRILLS = "Drills (what is promised, measured)"
PEOPLE = "For people"


class Reprocess(StrEnum):
    none = "none"
    failed = "failed"
    completed = "completed"


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


DatasetName = Annotated[str, typer.Option("--dataset", help="Dataset, e.g. commodity_prices.")]
BatchUri = Annotated[str, typer.Option("--batch", help="Manifest URI of the batch the step before handed over.")]
RunId = Annotated[str, typer.Option("--run-id", envvar="MARKETDATA_RUN_ID", help="Airflow run id.")]
Sources = Annotated[str, typer.Option(help="Sources, separated by commas; default: MARKETDATA_SOURCES.")]
DrillRunId = Annotated[
    str, typer.Option("--run-id", envvar="MARKETDATA_RUN_ID", help="Names what the drill makes; default: the time.")
]
Consumers = Annotated[int, typer.Option(min=1, max=10, help="Consumers of the drill's own group.")]
DAYS = ["%Y-%m-%d"]


def _for_people(command: str) -> Settings:
    loaded = settings.load()
    logs.configure(loaded, command, file=loaded.marketdata_home / "logs" / "marketdata.jsonl")
    return loaded


def _step(name: str, dataset: str, run_id: str, work: Callable[[Settings, Dataset], dict[str, Any]]) -> None:
    """Run a step: logs, the run record, and the result for XCom."""
    loaded = settings.load()
    logs.configure(loaded, name)
    contract = datasets.get(dataset)
    logs.bind(dataset=dataset, layer="batch", run_id=run_id)
    started = datetime.now()  # noqa: DTZ005 - a duration only
    with runs.recorded(loaded, dataset, run_id, name) as record:
        try:
            record.result = work(loaded, contract)
        except MarketdataError as error:
            record.result = error.result
            _hand_over(error.result)
            raise
    milliseconds = int((datetime.now() - started).total_seconds() * 1000)  # noqa: DTZ005
    log.info("step done", extra={"duration_ms": milliseconds, "batch_id": record.result.get("batch_id")})
    _hand_over(record.result)


def _choosing(loaded: Settings, sources: str) -> Settings:
    return loaded.model_copy(update={"marketdata_sources": sources}) if sources else loaded


def _hand_over(result: dict[str, Any]) -> None:
    """Give addresses and counts to XCom, or to whoever called; the run record has the tables. An empty one is none."""
    if not result:
        return
    target = os.environ.get("MARKETDATA_RESULT")
    text = json.dumps(
        {name: value for name, value in result.items() if not isinstance(value, list | dict)}, default=str
    )
    if target is None:
        typer.echo(text)
        return
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@app.command(rich_help_panel=STEPS)
def preflight(dataset: DatasetName, run_id: RunId, sources: Sources = "") -> None:
    """Reach every engine and check the topic, before anything is read."""
    from marketdata.tasks.preflight import preflight as work

    _step("preflight", dataset, run_id, lambda loaded, contract: work(_choosing(loaded, sources), contract))


@app.command(rich_help_panel=STEPS)
def extract(
    dataset: DatasetName,
    run_id: RunId,
    start: Annotated[datetime, typer.Option(formats=DAYS, help="First day.")],
    end: Annotated[datetime, typer.Option(formats=DAYS, help="Day after the last one.")],
    lookback_days: Annotated[int, typer.Option(min=0, help="Days before the interval to ask for revisions.")] = 0,
    attempt_of_run: Annotated[int, typer.Option(min=0, help="How often the run was cleared.")] = 0,
    sources: Sources = "",
) -> None:
    """Read the sources for the days [start, end) into a raw batch."""
    from marketdata.tasks.extract import extract as work

    def extracted(loaded: Settings, contract: Dataset) -> dict[str, Any]:
        interval = Interval(start.date(), end.date())
        batch = work(
            _choosing(loaded, sources),
            contract,
            interval,
            lookback_days=lookback_days,
            run_id=run_id,
            attempt_of_run=attempt_of_run,
        )
        details = batch.manifest.details
        return {**batch.summary(), "start": start.date(), "fingerprints": details["fingerprints"]}

    _step("extract", dataset, run_id, extracted)


@app.command(rich_help_panel=STEPS)
def validate(dataset: DatasetName, run_id: RunId, batch: BatchUri) -> None:
    """Let the quality gate judge a raw batch: quarantine rows, or stop."""
    from marketdata.tasks.validate import validate as work

    _step(
        "validate", dataset, run_id, lambda loaded, contract: work(loaded, contract, Lake(loaded).open(batch)).summary()
    )


@app.command(rich_help_panel=STEPS)
def transform(dataset: DatasetName, run_id: RunId, batch: BatchUri) -> None:
    """Type, normalise and identify the accepted rows."""
    from marketdata.tasks.transform import transform as work

    _step(
        "transform",
        dataset,
        run_id,
        lambda loaded, contract: work(loaded, contract, Lake(loaded).open(batch)).summary(),
    )


@app.command(rich_help_panel=STEPS)
def publish(dataset: DatasetName, run_id: RunId, batch: BatchUri) -> None:
    """Publish the changed records in one Kafka transaction."""
    from marketdata.tasks.publish import publish as work

    _step("publish", dataset, run_id, lambda loaded, contract: work(loaded, contract, Lake(loaded).open(batch)))


@app.command(rich_help_panel=STEPS)
def load(dataset: DatasetName, run_id: RunId, batch: BatchUri) -> None:
    """Merge the changed records into the table in one commit."""
    from marketdata.tasks.load import load as work

    _step("load", dataset, run_id, lambda loaded, contract: work(loaded, contract, Lake(loaded).open(batch)))


@app.command(rich_help_panel=STEPS)
def reconcile(
    dataset: DatasetName,
    run_id: RunId,
    batch: Annotated[
        str, typer.Option("--batch", help="Transformed batch; empty where the run did not get so far.")
    ] = "",
) -> None:
    """Prove by sets of record ids and content hashes that nothing was lost and nothing is there twice."""
    from marketdata.tasks.reconcile import reconcile as work

    _step("reconcile", dataset, run_id, lambda loaded, contract: work(loaded, contract, batch))


@app.command(rich_help_panel=STEPS)
def maintain(dataset: DatasetName) -> None:
    """Merge small files, expire old snapshots, and forget what nobody can ask for again."""
    from marketdata.tasks.maintain import maintain as work

    loaded = settings.load()
    logs.configure(loaded, "maintain")
    logs.bind(dataset=dataset, layer="batch")
    _hand_over(work(loaded, datasets.get(dataset, derived=True)))


def _drill(name: str, run_id: str, work: Callable[[Settings, str], dict[str, Any] | None]) -> None:
    """Run a drill: it is no step of a dataset's run, so the run record knows nothing of it."""
    loaded = settings.load()
    logs.configure(loaded, name)
    run_id = run_id or f"by_hand__{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
    logs.bind(layer="operations", run_id=run_id)
    try:
        _hand_over(work(loaded, run_id) or {})
    except MarketdataError as error:
        _hand_over(error.result)
        raise


@app.command("load-test", rich_help_panel=DRILLS)
def load_test(
    profile: Annotated[str, typer.Option(help="burst, day, ceiling or headroom.")] = "burst",
    run_id: DrillRunId = "",
    consumers: Consumers = 3,
    messages: Annotated[
        int, typer.Option(min=0, help="Rehearse with so many messages, thresholds unchanged; 0: the profile's.")
    ] = 0,
) -> None:
    """Put a load on the platform, on topics of its own, and judge rate, lag and loss."""
    from marketdata.tasks import drills

    _drill(
        "load-test",
        run_id,
        lambda loaded, run: drills.load_test(loaded, profile, run, consumers=consumers, messages=messages),
    )


@app.command(rich_help_panel=DRILLS)
def chaos(
    scenario: Annotated[str, typer.Option(help="Scenarios, separated by commas, or all.")] = "all",
    run_id: DrillRunId = "",
    consumers: Consumers = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--no-dry-run", help="Leave alone what is not the drill's own.")
    ] = True,
) -> None:
    """Kill, freeze and cut off, heal, and judge how soon all is well and that nothing was lost."""
    from marketdata.tasks import drills

    _drill(
        "chaos", run_id, lambda loaded, run: drills.chaos(loaded, scenario, run, consumers=consumers, dry_run=dry_run)
    )


@app.command("drill-check", rich_help_panel=DRILLS)
def drill_check(run_id: DrillRunId = "") -> None:
    """See that every engine is well, before anything is loaded or disrupted."""
    from marketdata.tasks import drills

    _drill("drill-check", run_id, lambda loaded, _: drills.check(loaded))


@app.command("drill-clear", rich_help_panel=DRILLS)
def drill_clear(
    run_id: Annotated[str, typer.Option("--run-id", envvar="MARKETDATA_RUN_ID", help="Run whose drills are cleared.")],
) -> None:
    """Heal what a run's drills have disrupted, and remove what they have made, however they ended."""
    from marketdata.tasks import drills

    _drill("drill-clear", run_id, drills.clear)


@app.command(rich_help_panel=SERVICES)
def analytics() -> None:
    """Turn the prices topic into live one-minute aggregates, until SIGTERM or Ctrl-C."""
    from marketdata.tasks.analytics import analytics as work

    loaded = settings.load()
    logs.configure(loaded, "analytics")
    logs.bind(layer="streaming")
    work(loaded)


@app.command(rich_help_panel=PEOPLE)
def run(
    dataset: DatasetName = "commodity_prices",
    start: Annotated[datetime | None, typer.Option(formats=DAYS, help="First day; default: see above.")] = None,
    end: Annotated[datetime | None, typer.Option(formats=DAYS, help="Day after the last one.")] = None,
) -> None:
    """Carry prices through the whole pipeline here and now, and show what happened.

    The first run of a set of sources asks for their whole history, later ones for the newest interval.
    """
    from marketdata.tasks.run import run as work

    days = (start.date() if start else None, end.date() if end else None)
    raise typer.Exit(work(_for_people("run"), datasets.get(dataset), *days))


@app.command(rich_help_panel=PEOPLE)
def backfill(
    start: Annotated[datetime, typer.Option("--from", formats=DAYS, help="First day.")],
    end: Annotated[datetime, typer.Option("--to", formats=DAYS, help="Last day.")],
    reprocess: Annotated[
        Reprocess, typer.Option(help="What to do with days that have a run already.")
    ] = Reprocess.none,
) -> None:
    """Run the pipeline for past days through Airflow's scheduler, which is started if it does not run."""
    from marketdata.tasks.backfill import backfill as work

    raise typer.Exit(work(_for_people("backfill"), start.date(), end.date(), reprocess.value))


@app.command(rich_help_panel=PEOPLE)
def query(
    sql: Annotated[str, typer.Argument(help="One SELECT; tables: commodity_prices, commodity_prices_quarantine.")],
    format: Annotated[Format, typer.Option("--format", help="How to print the answer.")] = Format.table,  # noqa: A002
    as_of_run: Annotated[
        str | None,
        typer.Option("--as-of-run", metavar="RUN_ID", help="Read the tables as they were right after this run's load."),
    ] = None,
    dataset: DatasetName = "commodity_prices",
) -> None:
    """Ask the lake, as it is or as a run of the last 30 days left it.

    Example: marketdata query "SELECT commodity, max(price) FROM commodity_prices GROUP BY 1" --format csv
    """
    from marketdata.tasks.query import query as work
    from marketdata.tasks.query import snapshots_after

    loaded = _for_people("query")
    at = snapshots_after(loaded, datasets.get(dataset), as_of_run) if as_of_run else None
    work(loaded, sql, format.value, at)


@topics_app.command("diff")
def topics_diff() -> None:
    """Compare the cluster's topics, and the registry's schemas, with the catalogue; exit 1 where they differ."""
    from marketdata.tasks import topics

    raise typer.Exit(topics.diff(_for_people("topics")))


@topics_app.command("apply")
def topics_apply() -> None:
    """Create what is missing, apply safe changes, register schemas; what would lose or break something is refused."""
    from marketdata.tasks import topics

    topics.apply(_for_people("topics"))


@topics_app.command("read")
def topics_read(
    topic: Annotated[str, typer.Argument(help="Topic, e.g. commodity-prices.")],
    limit: Annotated[int, typer.Option(min=1, help="Messages to read, from the beginning.")] = 10,
) -> None:
    """Print committed messages from the beginning, one JSON a line."""
    from marketdata.tasks import topics

    topics.read(_for_people("topics"), topic, limit)


@dlq_app.command("list")
def dlq_list(limit: Annotated[int, typer.Option(min=1, max=10_000, help="Letters to show.")] = 20) -> None:
    """List the newest messages that could not be read, and why."""
    from marketdata.tasks import dlq

    dlq.show_list(_for_people("dlq"), limit)


@dlq_app.command("show")
def dlq_show(letter: Annotated[int, typer.Argument(help="Number of the letter.")]) -> None:
    """Show one message as it was."""
    from marketdata.tasks import dlq

    dlq.show(_for_people("dlq"), letter)


@dlq_app.command("replay")
def dlq_replay(
    letters: Annotated[list[int] | None, typer.Argument(help="Numbers of letters.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that have not been replayed.")] = False,
) -> None:
    """Have messages read again, each once: after the contract or the consumer has been put right."""
    from marketdata.tasks import dlq

    dlq.replay(_for_people("dlq"), letters or [], every)


@engines_app.command("up")
def engines_up(
    airflow: Annotated[bool, typer.Option("--airflow", help="Also start the Airflow UI and scheduler.")] = False,
) -> None:
    """Start the embedded engines that no address replaces."""
    from marketdata.tasks import engines

    engines.up(_for_people("engines"), airflow=airflow)


@engines_app.command("down")
def engines_down() -> None:
    """Stop what was started here."""
    from marketdata.tasks import engines

    engines.down(_for_people("engines"))


@engines_app.command("status")
def engines_status() -> None:
    """List the engines, their state and address."""
    from marketdata.tasks import engines

    engines.status(_for_people("engines"))


@runs_app.command("list")
def runs_list(
    dataset: DatasetName = "commodity_prices", limit: Annotated[int, typer.Option(min=1, max=1000)] = 20
) -> None:
    """List the last runs, newest first."""
    from marketdata.tasks import runs as work

    work.show_list(_for_people("runs"), datasets.get(dataset), limit)


@runs_app.command("show")
def runs_show(run_id: str, dataset: DatasetName = "commodity_prices") -> None:
    """Show one run: each step, and the table per commodity and series."""
    from marketdata.tasks import runs as work

    work.show(_for_people("runs"), datasets.get(dataset), run_id)


def main() -> None:
    """Entry point. Exit codes: 0 done, 64 usage, 65 bad data, 69 a dependency is down, 70 our bug, 75 try later."""
    # A container's first process has no default for a signal: nothing but this ends it before SIGKILL does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except SystemExit as end:
        _end(UsageError.exit_code if end.code == 2 else int(end.code or 0))
    except Exception as error:  # our bug: everything foreseen is a MarketdataError
        log.exception("unforeseen")
        typer.echo(f"error: unforeseen {type(error).__name__}: {error}", err=True)
        _end(MarketdataError.exit_code)


def _end(code: int) -> NoReturn:
    """End the process with this code, whatever its threads are doing."""
    if any(thread.daemon for thread in threading.enumerate()):
        # The interpreter's own end would abort the process where one is in a client's native code: exit code 134.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
