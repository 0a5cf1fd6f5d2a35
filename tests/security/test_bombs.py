"""Small inputs that want to become large ones: refused in clear words, within the memory of the smallest pod."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from marketdata.orchestration import profiles
from tests.security.world import Reply, world
from tests.unit.sources.reading import ENTRY, workbook

EXPLODE = Path(__file__).with_name("explode.py")
MEBIBYTE = 2**20
SECONDS = 60
WIDE = f"<row>{'<c><v>1</v></c>' * 16_000}</row>"
SHEETS = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
HEAD = '<row><c t="inlineStr"><is><t>Date</t></is></c><c t="inlineStr"><is><t>Price</t></is></c></row>'


def repeated(block: bytes, times: int) -> bytes:
    """Gzip of a block that is repeated; members follow one another, so that a gigabyte is made at once."""
    return gzip.compress(block, 9) * times


def book(**members: bytes) -> bytes:
    """A workbook with other members; their names are written with ``__`` for a slash."""
    replaced = {f"{name.replace('__', '/')}.xml": content for name, content in members.items()}
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(workbook([["Date", "Price"], ["2020-04-20", 17.0]]))) as sound,
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name in {*sound.namelist(), *replaced}:
            archive.writestr(name, replaced[name] if name in replaced else sound.read(name))
    return made.getvalue()


def sheet(rows: str, before: str = "") -> bytes:
    return book(
        xl__worksheets__sheet1=f'{before}<worksheet xmlns="{SHEETS}"><sheetData>{rows}</sheetData></worksheet>'.encode()
    )


def parquet(columns: Callable[[], dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(columns()), sink, compression="zstd")
    return sink.getvalue()


def one_text_in_every_row() -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa

    rows = 65_536
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["9" * 100_000]))
    return {"Date": ["2020-04-20"] * rows, "Price": long}


def one_row_of_many() -> dict[str, Any]:
    import pyarrow as pa

    return {"Date": ["2020-04-20"], "Price": pa.array([[None] * 5_000_000], pa.list_(pa.float64()))}


def one_long_word() -> dict[str, Any]:
    import pyarrow as pa

    return {"Date": ["2020-04-20"], "Price": pa.array([b"9" * 100_000], pa.binary(100_000))}


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + level)}: &{chr(98 + level)} [{', '.join([f'*{chr(97 + level)}'] * 9)}]\n" for level in range(20)
)

FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "gzip of zeros": ("x.csv.gz", lambda: repeated(bytes(MEBIBYTE), 600), "NUL byte"),
    "gzip of one line": ("x.csv.gz", lambda: b"".join([repeated(b"Date,Price\n", 1), repeated(b"0" * MEBIBYTE, 600)]),
                         "decompresses to more than"),
    "gzip of JSON": ("x.json.gz", lambda: repeated(b" " * MEBIBYTE, 600), "more than 64 MiB"),
    "a truncated gzip": ("x.csv.gz", lambda: repeated(bytes(MEBIBYTE), 1)[:-20], "is truncated"),
    "objects of nothing": ("x.json", lambda: b"[" + b"{}," * 4_000_000 + b"{}]", "values at once"),
    "numbers in one field": (
        "x.json", lambda: b'[{"Date":"2020-04-20","Price":[' + b"0.1," * 6_100_000 + b"0]}]", "values at once",
    ),
    "lists in a line": (
        "x.ndjson", lambda: b'{"Date":"2020-04-20","Price":[' + b"[]," * 5_000_000 + b"0]}\n", "values at once",
    ),
    "a line without end": ("x.ndjson", lambda: b'{"Price":"' + b"9" * (20 * MEBIBYTE), "a line of more than"),
    "deep JSON": ("x.json", lambda: b"[" * MEBIBYTE, "is JSON of another shape"),
    "deep JSON in a field": (
        "x.ndjson", lambda: b'{"Date":"2020-04-20","Price":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply",
    ),
    "a number of a million digits": ("x.json", lambda: b'[{"Date":"2020-04-20","Price":' + b"9" * MEBIBYTE + b"}]",
                                     "out of range"),
    "a long text": (
        "x.json", lambda: b'[{"Date":"2020-04-20","Price":"' + b"9" * MEBIBYTE + b'"}]', "more than 32768",
    ),
    "a long cell": ("x.csv", lambda: b"Date,Price\n2020-04-20," + b"9" * 40_000 + b"\n", "more than 32768"),
    "a cell larger than a block": ("x.csv", lambda: b"Date,Price\n2020-04-20," + b"9" * (8 * MEBIBYTE) + b"\n", ""),
    "a million columns": ("x.csv", lambda: b"Date,Price" + b",c" * 1_000_000 + b"\n2020-04-20,1\n", ""),
    "a text in every row": ("x.parquet", lambda: parquet(one_text_in_every_row), "bytes of text in 65536 rows"),
    "a list of millions": ("x.parquet", lambda: parquet(one_row_of_many), "is of type list"),
    "words of a fixed length": ("x.parquet", lambda: parquet(one_long_word), "is of type fixed_size_binary"),
    "rows without a position": (
        "x.xlsx", lambda: sheet(HEAD + WIDE + "<row/>" * 501 + "<row><c><v>1</v></c></row>"), "more than 8000000 cells",
    ),
    "rows of a prefix": (
        "x.xlsx",
        lambda: sheet(HEAD + WIDE.replace("<", "<x:").replace("<x:/", "</x:") + "<x:row/>" * 501),
        "more than 8000000 cells",
    ),
    "a cell far away": ("x.xlsx", lambda: sheet(HEAD + '<row><c s=">" r="XFD1000"/></row>'), "more than 8000000 cells"),
    "shared texts": (
        "x.xlsx",
        lambda: book(xl__sharedStrings=f'<sst xmlns="{SHEETS}">'.encode() + b"<a/>" * 25_000_000 + b"</sst>"),
        "elements",
    ),
    "entities of entities": (
        "x.xlsx",
        lambda: sheet(
            HEAD + '<row r="2"><c t="inlineStr"><is><t>&c;</t></is></c></row>',
            f'<!DOCTYPE x [<!ENTITY a "{"a" * 1000}"><!ENTITY b "{"&a;" * 1000}"><!ENTITY c "{"&b;" * 1000}">]>',
        ),
        "is not a sound XLSX file",
    ),
    "an entity of a file": (
        "x.xlsx",
        lambda: sheet(
            HEAD + '<row r="2"><c t="inlineStr"><is><t>&a;</t></is></c></row>',
            '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        ),
        "is not a sound XLSX file",
    ),
}  # fmt: skip
"""A file's name, what it holds, and a part of what is said of it; all are bad data."""

MAPPINGS: dict[str, tuple[bytes, str]] = {
    "laughs of laughs": (LAUGHS.encode(), "aliases are not allowed"),
    "deep YAML": (b"[" * 100_000, "is not valid"),
    "deep blocks": (b"\n".join(b" " * level + b"a:" for level in range(700)), "is not valid"),
    "large YAML": (b"a: " + b"x" * (300 * 1024), "is larger than"),
    "a constructor": (b"entries: !!python/object/apply:os.system ['touch owned']", "is not valid"),
    "a number in base sixty": (b"entries: " + b"1:" * 100_000 + b"1", "is not valid"),
}


@dataclass(frozen=True)
class Ended:
    """How an extraction ended."""

    exit_code: int
    says: str
    megabytes: int
    seconds: float


@dataclass(frozen=True)
class Bombs:
    """How each ended, and the files that were written."""

    ended: dict[str, Ended]
    left: list[str]


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Bombs:
    """Every bomb, extracted."""
    folder = tmp_path_factory.mktemp("bombs")
    asking = {}
    for number, (name, (file, content, _)) in enumerate(FILES.items()):
        place = folder / str(number)
        place.mkdir()
        (place / file).write_bytes(content())
        (place / "mapping.yaml").write_text(f"entries:{ENTRY.format(files='x.*', more='')}")
        asking[name] = {"marketdata_files": str(place)}
    for number, (name, (mapping, _)) in enumerate(MAPPINGS.items(), start=len(FILES)):
        place = folder / str(number)
        place.mkdir()
        (place / "mapping.yaml").write_bytes(mapping)
        asking[name] = {"marketdata_files": str(place)}
    with world() as around:
        around.prices = _hostile
        for name in ANSWERS:
            address = f"{around.api}/{name.replace(' ', '-')}"
            asking[name] = {"marketdata_sources": "api", "commodity_api_url": address}
        common = {"lake_uri": f"file://{folder}/lake", "marketdata_sources": "files"}
        asked = folder / "bombs.json"
        asked.write_text(json.dumps({name: {**common, **overrides} for name, overrides in asking.items()}))
        environment = {"PATH": os.environ["PATH"], "MARKETDATA_HOME": str(folder), "HOME": str(folder)}
        done = subprocess.run(
            [sys.executable, str(EXPLODE), str(asked)],
            env=environment, cwd=folder, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = {name: Ended(**how) for name, how in map(json.loads, done.stdout.splitlines())}
    left = sorted(path.name for path in folder.rglob("*") if path.is_file() and path.parent.parent != folder)
    return Bombs(found, left)


def _gzip_of_gzip() -> Reply:
    content = gzip.compress(repeated(bytes(10 * MEBIBYTE), 400), 9)
    return Reply(body=content, headers={"Content-Encoding": "gzip, gzip"})


ANSWERS: dict[str, tuple[Callable[[], Reply], str]] = {
    "a compressed answer": (
        lambda: Reply(body=repeated(b" " * MEBIBYTE, 200), headers={"Content-Encoding": "gzip"}), "is more than",
    ),
    "an answer compressed twice": (_gzip_of_gzip, ""),
    "an answer of nothing": (lambda: Reply(body=b"[" + b"{}," * 4_000_000 + b"{}]"), "values at once"),
    "a deep answer": (lambda: Reply(body=b'{"data":' * 100_000), "is JSON of another shape"),
    "a next page that is itself": (lambda: Reply(body=b'{"data": [], "next": "?page=1"}'), "again as the next one"),
}  # fmt: skip


def _hostile(request: Any) -> Reply:
    name = request.path.removeprefix("/prices/").partition("?")[0].replace("-", " ")
    return ANSWERS[name][0]()


@pytest.mark.parametrize("name", [*FILES, *ANSWERS])
def test_a_bomb_is_bad_data_and_stays_small(bombs: Bombs, name: str) -> None:
    says = FILES[name][2] if name in FILES else ANSWERS[name][1]
    how = bombs.ended[name]
    assert how.exit_code == 65, how
    assert says in how.says
    assert len(how.says) < 1_000
    assert "root:" not in how.says
    _is_bounded(how)


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_mapping_that_is_none_is_wrong_use_and_stays_small(bombs: Bombs, name: str) -> None:
    how = bombs.ended[name]
    assert how.exit_code == 64, how
    assert MAPPINGS[name][1] in how.says
    assert len(how.says) < 1_000
    _is_bounded(how)


def test_nothing_of_a_refused_extraction_is_left(bombs: Bombs) -> None:
    assert bombs.left == ["bombs.json"]


def _is_bounded(how: Ended) -> None:
    limit = profiles.get("small").memory[1]
    assert limit == "1Gi"
    assert how.megabytes < 900, "the pod would be killed, without a word"
    assert how.seconds < SECONDS
