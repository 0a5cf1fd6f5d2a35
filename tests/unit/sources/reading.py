"""Reading a folder through a mapping written in the test."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from marketdata.batches import Interval
from marketdata.datasets import get

DATASET = get("commodity_prices")
EVER = Interval(date(1, 1, 1), date(9999, 12, 31))
NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
ENTRY = """
  - files: "{files}"
    source: test
    commodity: Oil
    series: WTI
    frequency: daily
    currency: USD
    unit: bbl
    date: {{column: Date, format: "%Y-%m-%d"}}
    price: Price
    {more}
"""

Read = Callable[..., list[dict[str, Any]]]


def rows(tables: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """The rows of tables that all have the raw schema."""
    taken: list[dict[str, Any]] = []
    for table in tables:
        assert table.schema == DATASET.raw_schema()
        taken += table.to_pylist()
    return taken


def entry(files: str, more: str = "") -> str:
    return ENTRY.format(files=files, more=more)


def workbook(cells: Sequence[Sequence[str | float | None]], sheet: str = "S", raw: str = "") -> bytes:
    """An XLSX file of one sheet; `raw` is XML that is put behind the rows."""
    letters = "ABCDEFGHIJ"
    body = ""
    for number, row in enumerate(cells, start=1):
        body += f'<row r="{number}">'
        for letter, cell in zip(letters, row, strict=False):
            if isinstance(cell, str):
                body += f'<c r="{letter}{number}" t="inlineStr"><is><t>{cell}</t></is></c>'
            elif cell is not None:
                body += f'<c r="{letter}{number}"><v>{cell!r}</v></c>'
        body += "</row>"
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"

    def relation(kind: str, target: str) -> str:
        one = f'<Relationship Id="r" Type="{office}/{kind}" Target="{target}"/>'
        return f'<Relationships xmlns="{package}">{one}</Relationships>'

    members = {
        "[Content_Types].xml": f'<Types xmlns="{package.replace("relationships", "content-types")}"/>',
        "_rels/.rels": relation("officeDocument", "xl/workbook.xml"),
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}">'
        f'<sheets><sheet name="{sheet}" sheetId="1" r:id="r"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": relation("worksheet", "worksheets/sheet1.xml"),
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{body}{raw}</sheetData></worksheet>',
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()
