"""Links from a task in the Airflow UI to what it handed over; `plugins/reports.py` serves the pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

PAGES = "/marketdata"
"""Where the API server mounts the pages."""

_REPORTING = frozenset({"validate", "load-test", "chaos"})
"""Commands whose batch holds a report."""


class BatchLink(BaseOperatorLink):
    """To the manifest of the batch a task wrote, or else of the one it worked on."""

    name = "Batch"
    page = "batch"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        uri = _batch(operator, ti_key)
        return _address(self.page, uri) if uri else ""


class ReportLink(BatchLink):
    """To the report of the quality gate, or of a drill."""

    name = "Report"
    page = "report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        if getattr(operator, "component", "") not in _REPORTING:
            return ""
        return super().get_link(operator, ti_key=ti_key)


def _batch(operator: BaseOperator, instance: Any) -> str:
    # The task runner hands its task instance over as the key; it asks once, when the task has ended.
    result = instance.xcom_pull(task_ids=instance.task_id)
    if isinstance(result, dict) and result.get("batch"):
        return str(result["batch"])
    command: list[str] = getattr(operator, "command", [])
    return command[command.index("--batch") + 1] if "--batch" in command[:-1] else ""


def _address(page: str, uri: str) -> str:
    from airflow.sdk.configuration import conf

    prefix = urlsplit(conf.get("api", "base_url", fallback="/")).path.rstrip("/")
    return f"{prefix}{PAGES}/{page}?manifest={quote(uri, safe='')}"
