from __future__ import annotations

import json
import logging

import pytest

from marketdata.observability import logs


@pytest.fixture(autouse=True)
def _restore_logging():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before[0], before[1]


def test_every_line_is_json_with_the_context_of_the_run(settings_for, monkeypatch, capsys):
    monkeypatch.setenv("MARKETDATA_RUN_ID", "manual__1")
    logs.configure(settings_for(tenant="acme"), "publish")
    logs.bind(batch_id="b1", layer="batch")
    logging.getLogger("marketdata.x").info("published %d", 3, extra={"records": 3})
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("marketdata.x").exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["message"] == "published 3"
    assert {"timestamp", "level", "job_name", "exchange", "layer", "batch_id", "tenant", "run_id", "pod_name"} <= set(
        first
    )
    assert (first["job_name"], first["batch_id"], first["tenant"], first["run_id"]) == (
        "publish",
        "b1",
        "acme",
        "manual__1",
    )
    assert first["records"] == 3
    assert "ValueError: broken" in second["exc_info"]


def test_a_persons_terminal_stays_free_of_logs(settings_for, tmp_path, capsys):
    file = tmp_path / "logs" / "marketdata.jsonl"
    logs.configure(settings_for(), "query", file=file)
    logging.getLogger("marketdata.x").warning("noted")
    assert capsys.readouterr().err == ""
    assert json.loads(file.read_text())["message"] == "noted"
