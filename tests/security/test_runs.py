"""Whole runs: unique secrets in every setting, connection and variable, and attackers' words in results and parameters.

The real pipeline runs and fails; then the secrets are looked for in everything it left.

The brokers' addresses and certificates, the topic and the user lie in a Secret as well, but are no secrets: errors
name them on purpose.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from marketdata.orchestration.environment import SECRETS
from tests.engines import slack
from tests.engines.slack import Slack, slack_server
from tests.fake_marketdata import Fake
from tests.security.canaries import canary, files, leaks
from tests.security.world import Reply, World, echoing, world

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("runner.py")
MARKETDATA = Path(sys.executable).with_name("marketdata")
NO_SECRETS = {"KAFKA_BROKERS", "KAFKA_TOPIC", "KAFKA_USER", "KAFKA_CA"}
DAY = {"start": "2020-04-20", "end": "2020-04-23", "sources": "api"}
PRICES = [
    {"commodity": "Gold", "price": 1700.5 + day, "timestamp": f"2020-04-2{day}T00:00:00Z", "unit": "troy oz"}
    for day in range(3)
]
REFUSED = [{**PRICES[0], "price": -1.0}]
SCENES = ("green", "refused")
HOSTILE = """{{ 7 * 7 }}{% raw %}$(touch owned)`id`;'"--help\n{{ conn.other.password }}${HOME}"""
"""What a result, or a parameter, could hold if somebody wanted it to become a template, a shell's word or an option."""
ATTACKS: dict[str, dict[str, Any]] = {
    "results": {
        **DAY, "image": HOSTILE, "namespace": "kube-system", "command": ["sh", "-c", HOSTILE],
        "service_account_name": "cluster-admin", "params": {"sources": HOSTILE}, "dataset": "../../etc",
    },
}  # fmt: skip
"""Configurations of runs whose `marketdata` is a fake that only writes down how it was called."""

SECONDS = 240


@dataclass(frozen=True)
class After:
    """What the runs left."""

    known: dict[str, str] = field(repr=False)
    places: dict[str, bytes] = field(repr=False)
    green: dict[str, bool]
    calls: dict[str, list[dict[str, Any]]] = field(repr=False)
    own: list[Path] = field(repr=False)
    slack: Slack = field(repr=False)
    world: World = field(repr=False)


@pytest.fixture(scope="module")
def after(new_home: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[After]:
    """A run that succeeds with a refused row, and one whose API refuses and repeats the key it was sent."""
    from marketdata import engines
    from marketdata.engines.airflow import airflow_environment, migrate_airflow
    from marketdata.settings import ENDPOINTS_VARIABLE, Settings
    from marketdata.streaming import topics

    home = new_home("canaries")
    secret = {name: canary(name.lower()) for name in SECRETS if name not in NO_SECRETS and name != "POSTGRES_DSN"}
    secret |= {"another connection": canary("connection"), "a variable": canary("variable")}
    with pytest.MonkeyPatch.context() as patch, world() as around, slack_server() as talk:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        patch.setenv("MARKETDATA_HOME", str(home))
        patch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
        settings = engines.up(Settings(), ["kafka", "postgres"])
        try:
            topics.apply(settings)
            migrate_airflow(settings)
            airflow = airflow_environment(settings)
            known = {
                **secret,
                "the database's password": urlsplit(settings.require("postgres_dsn")).password or "",
                "the Slack token": slack.TOKEN,
                **{name: airflow[name] for name in airflow if name.endswith(("_KEY", "_SECRET"))},
            }
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                **airflow,
                **{name: value for name, value in secret.items() if name in SECRETS},
                "COMMODITY_API_URL": around.api,
                "PUSHGATEWAY_URL": around.address,
                "AIRFLOW_CONN_SLACK_DEFAULT": json.dumps(talk.bot),
                "AIRFLOW_CONN_OTHER": json.dumps(
                    {"conn_type": "http", "login": "etl", "password": secret["another connection"]}
                ),
                "AIRFLOW_VAR_OTHER": secret["a variable"],
                "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
                "LOG_LEVEL": "DEBUG",
            }
            refuse = echoing(401)
            around.prices = lambda request: (
                Reply.records(*PRICES, *REFUSED) if around.scene == "green" else refuse(request)
            )
            scenarios: dict[str, dict[str, Any]] = {
                name: {"switch": f"{around.address}/scene/{name}", "conf": DAY, "programs": ""} for name in SCENES
            }
            fakes = {name: Fake(tmp_path_factory.mktemp("bin")) for name in ATTACKS}
            for name, fake in fakes.items():
                fake.behave(**{step: {"result": {"batch": HOSTILE}} for step in ("extract", "validate", "transform")})
                scenarios[name] = {**scenarios["green"], "conf": ATTACKS[name], "programs": str(fake.folder)}
            done = subprocess.run(
                [sys.executable, str(RUNNER), json.dumps(scenarios)],
                env=environment, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=SECONDS, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-4000:]
            ran = [
                json.loads(line.removeprefix("RAN ")) for line in done.stdout.splitlines() if line.startswith("RAN ")
            ]
            own = [home / "engines" / "endpoints.json"]
            own += [home / "engines" / "postgres" / name for name in ("password", "data")]
            own += [home / "airflow" / name for name in ("fernet-key", "secret-key", "jwt-secret")]
            places = {
                "what the runs said": done.stdout.encode(),
                **{f"file {place}": content for place, content in files(home, without=own)},
                **{f"table {name}": rows for name, rows in _tables(settings)},
                **{f"topic {name}": messages for name, messages in _messages(settings)},
                "Slack": json.dumps([[post.payload for post in talk.posted], talk.refused]).encode(),
                "metrics": b"".join(around.pushed),
            }
            calls = {name: fake.calls() for name, fake in fakes.items()}
            yield After(known, places, dict(ran), calls, own, talk, around)
        finally:
            engines.down(settings)


def _tables(settings: Any) -> Iterator[tuple[str, bytes]]:
    """Every table of every database, as text."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    for database in ("marketdata", "airflow", "iceberg"):
        dsn = urlsplit(settings.require("postgres_dsn"))._replace(path=f"/{database}").geturl()
        with closing(psycopg.connect(dsn, autocommit=True)) as connection:
            names = connection.execute(
                "SELECT schemaname, tablename FROM pg_tables"
                " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            ).fetchall()
            for schema, table in names:
                rows = connection.execute(SQL("SELECT t::text FROM {} AS t").format(Identifier(schema, table)))
                yield f"{database}.{schema}.{table}", "\n".join(row for (row,) in rows).encode()


def _messages(settings: Any) -> Iterator[tuple[str, bytes]]:
    from marketdata.streaming.brokers import reach
    from marketdata.streaming.consume import read_back

    for topic in reach(settings).metadata.topics:
        if not topic.startswith("__"):
            yield topic, b"\n".join(read_back(settings, topic, 100_000))


def test_the_runs_went_as_they_were_meant_to(after: After) -> None:
    assert {name: after.green[name] for name in SCENES} == {"green": True, "refused": False}
    key = after.known["COMMODITY_API_KEY"]
    assert (f"Bearer {key}") in {authorization for _, _, authorization in after.world.asked}, "the key was used"
    assert b"the API answered 401" in after.places["what the runs said"]
    assert after.slack.about("commodity-price-pipeline failed"), "Slack was told"
    assert any(b"batch_jobs_failed_total" in pushed for pushed in after.world.pushed), "metrics were pushed"


def test_what_a_step_hands_over_reaches_the_next_one_as_it_is(after: After) -> None:
    """Never rendered again, by no shell, and as one word."""
    assert after.green["results"]
    words = {call["words"][0]: call["words"] for call in after.calls["results"]}
    for step in ("validate", "transform", "publish", "load", "reconcile"):
        assert words[step] == [step, "--dataset", "commodity_prices", "--batch", HOSTILE]


def test_what_a_run_is_told_beyond_its_parameters_changes_nothing(after: After) -> None:
    (extract,) = (call for call in after.calls["results"] if call["words"][0] == "extract")
    assert extract["words"] == [
        "extract", "--dataset", "commodity_prices", "--start", DAY["start"], "--end", DAY["end"],
        "--lookback-days", "0", "--attempt-of-run", "0", "--sources", DAY["sources"],
    ]  # fmt: skip
    told = json.dumps([call["env"] for call in after.calls["results"]])
    assert "kube-system" not in told
    assert "7 * 7" not in told
    assert not any((Path(call["cwd"]) / "owned").exists() for call in after.calls["results"])


@pytest.mark.parametrize(
    ("place", "holds"),
    [
        ("what the runs said", "quarantine"),
        ("table airflow.public.xcom", "manifest.json"),
        ("table airflow.public.rendered_task_instance_fields", "--sources"),
        ("table airflow.public.log", "commodity-price-pipeline"),
        ("table airflow.public.dag_run", "2020-04-20"),
        ("table marketdata.marketdata.run_steps", "the API answered 401"),
        ("table marketdata.marketdata.notices", "failed"),
        ("table marketdata.marketdata.run_outcomes", "failed"),
        ("topic commodity-prices", "1701.5"),
        ("topic commodity-prices-ledger", "published_at"),
        ("Slack", "the API answered 401"),
        ("metrics", "batch_jobs_failed_total"),
    ],
)
def test_each_place_was_looked_at(after: After, place: str, holds: str) -> None:
    assert holds in after.places[place].decode(errors="replace")


def test_files_were_looked_at(after: After) -> None:
    names = "\n".join(after.places)
    for part in ("manifest.json", "report-", "result-", ".parquet, decoded", "lake/warehouse", "airflow/"):
        assert part in names, part


def test_no_secret_is_anywhere(after: After) -> None:
    assert len(after.known) >= 9
    assert leaks(after.known, after.places.items()) == []


def test_files_that_hold_a_secret_are_their_owners(after: After) -> None:
    """Those the engines keep for themselves; the search leaves them out."""
    assert {path.name for path in after.own if path.exists()} >= {"endpoints.json", "password", "data", "jwt-secret"}
    assert [path.name for path in after.own if path.exists() and path.stat().st_mode & 0o077] == []


S3 = {"LAKE_URI": "s3://lake/prices", "AWS_ENDPOINT_URL": "{world}"}
ARCHIVE = ["extract", "--dataset", "commodity_prices", "--start", "2018-12-03", "--end", "2018-12-04"]
API = [*ARCHIVE, "--sources", "api"]
FAILING: dict[str, tuple[list[str], dict[str, str], int]] = {
    "wrong key of the store": (ARCHIVE, S3, 69),
    "wrong key of the store, in preflight": (["preflight", "--dataset", "commodity_prices"], S3, 69),
    "no store": (ARCHIVE, {"LAKE_URI": "s3://lake/prices", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, 69),
    "API answers 401": (API, {"COMMODITY_API_URL": "{world}/prices?status=401"}, 64),
    "API answers 500": (API, {"COMMODITY_API_URL": "{world}/prices?status=500"}, 69),
    "API leads elsewhere with the key": (API, {"COMMODITY_API_URL": "{world}/prices?status=302"}, 65),
    "API answers with no JSON": (API, {"COMMODITY_API_URL": "{world}/prices?status=200"}, 65),
    "no database": (["query", "SELECT 1"], {"POSTGRES_DSN": "postgresql://etl:{password}@127.0.0.1:1/prices"}, 69),
    "a database's address with an error in it": (
        ["query", "SELECT 1"], {"POSTGRES_DSN": "postgres//etl:{password}@127.0.0.1:1/prices"}, 64,
    ),
    "a password that is not encoded": (
        ["query", "SELECT 1"], {"POSTGRES_DSN": "postgresql://etl:%zz{password}@127.0.0.1:1/prices"}, 64,
    ),
    "a port that is none": (
        ["query", "SELECT 1"], {"POSTGRES_DSN": "postgresql://etl@127.0.0.1:{password}/prices"}, 64,
    ),
    "no broker": (
        ["topics", "read", "commodity-prices"],
        {"KAFKA_BROKERS": "127.0.0.1:1", "POSTGRES_DSN": "postgresql://etl:{password}@127.0.0.1:1/prices"}, 69,
    ),
    "brokers that are none, with a password": (
        ["topics", "read", "commodity-prices"], {"KAFKA_USER": "etl", "KAFKA_BROKERS": "{broker}"}, 69,
    ),
    "no Trino": (
        ["query", "SELECT 1"], {"TRINO_HOST": "127.0.0.1", "TRINO_PORT": "1", "LAKE_URI": "s3://lake/prices"}, 69,
    ),
    "a credential where none belongs": (API, {"COMMODITY_API_URL": "http://etl:{plain}@127.0.0.1:1/prices"}, 64),
}  # fmt: skip
"""A command, what is wrong in its environment, and the code it ends with. The words are what a pod's log would hold."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str, list[str]]]]:
    """Exit code, output, and leaks of each failing command; all run at once, because most of them wait."""
    home = tmp_path_factory.mktemp("failing")
    secret = {name: canary(name.lower()) for name in SECRETS if name not in NO_SECRETS | {"POSTGRES_DSN"}}
    secret["the password, encoded"] = "cAnary%2F" + canary("x")[2:20]
    secret["a plain password"] = "cAnary" + canary("x")[2:20]
    with world() as around:

        def answer(request: Any) -> Reply:
            status = int(request.path.partition("status=")[2].partition("&")[0])
            reply = echoing(status)(request)
            key = reply.headers["X-Request"]
            return Reply(status, reply.body + b"}", {**reply.headers, "Location": f"http://[::1]:9/{key}?key={key}"})

        around.prices = answer
        running = {}
        for name, (words, wrong, _) in FAILING.items():
            filled = {
                variable: value.replace("{world}", around.address)
                .replace("{broker}", around.address.removeprefix("http://"))
                .replace("{password}", secret["the password, encoded"])
                .replace("{plain}", secret["a plain password"])
                for variable, value in wrong.items()
            }
            folder = home / name.replace(" ", "-")
            folder.mkdir()
            environment = {
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "MARKETDATA_HOME": str(folder),
                "MARKETDATA_RUN_ID": "manual__1",
                "LAKE_URI": f"file://{folder}/lake",
                "LOG_LEVEL": "DEBUG",
                **{variable: secret[variable] for variable in secret if variable in SECRETS},
                **filled,
            }
            running[name] = subprocess.Popen(
                [str(MARKETDATA), *words], env=environment, cwd=folder, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        ended = {}
        try:
            for name, process in running.items():
                out, _ = process.communicate(timeout=SECONDS)
                places = [("its output", out.encode()), *files(home / name.replace(" ", "-"))]
                ended[name] = (process.returncode, out, leaks(secret, places))
        finally:
            for process in running.values():
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
        yield ended


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_command_says_why_and_no_secret(said: dict[str, tuple[int, str, list[str]]], name: str) -> None:
    code, out, found = said[name]
    assert found == []
    assert code == FAILING[name][2], out[-2000:]
    assert "error: " in out
    assert "unforeseen" not in out


def test_no_pod_carries_a_secret(settings_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task of every DAG, as it is submitted, in an Airflow that knows all the secrets."""
    from airflow.dag_processing.dagbag import DagBag
    from kubernetes.client import ApiClient

    from marketdata import settings

    settings_for()
    secret = {name: canary(name.lower()) for name in SECRETS if name not in NO_SECRETS | {"POSTGRES_DSN"}}
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    secret["the password"] = "cAnary" + canary("x")[2:20]
    monkeypatch.setenv("POSTGRES_DSN", f"postgresql://etl:{secret['the password']}@db/prices")
    monkeypatch.setenv("LAKE_URI", "s3://lake/prices")
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "http", "password": canary("connection")}))
    secret["another connection"] = json.loads(os.environ["AIRFLOW_CONN_OTHER"])["password"]
    settings.load.cache_clear()
    try:
        tasks = [task for dag in DagBag(dag_folder=ROOT / "dags").dags.values() for task in dag.tasks]
        pods = {
            f"the pod of {task.task_id}": json.dumps(
                ApiClient().sanitize_for_serialization(task.build_pod_request_obj(dry_run=True))  # type: ignore[attr-defined]
            ).encode()
            for task in tasks
        }
    finally:
        settings.load.cache_clear()
    assert len(pods) >= 7
    assert all(b"secretKeyRef" in pod and b"production" in pod for pod in pods.values())
    assert leaks(secret, pods.items()) == []
