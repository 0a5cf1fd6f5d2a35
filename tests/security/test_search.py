"""The search for secrets finds what is planted: else its silence would prove nothing."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from tests.security.canaries import canary, files, leaks

WRITTEN: dict[str, Callable[[str], bytes]] = {
    "as it is": lambda secret: f"password={secret} refused".encode(),
    "in an address": lambda secret: f"postgresql://u:{quote(secret, safe='')}@db/x".encode(),
    "in a form": lambda secret: f"key={quote_plus(secret)}&start=1".encode(),
    "in JSON": lambda secret: json.dumps({"key": f'"{secret}'}).encode(),
    "in base 64 alone": lambda secret: base64.b64encode(secret.encode()),
    "in base 64 behind a name": lambda secret: base64.b64encode(f"user:{secret}\n".encode()),
    "in base 64 behind two letters": lambda secret: base64.b64encode(f"ab{secret}".encode()),
    "in a token": lambda secret: base64.urlsafe_b64encode(f"?{secret}~".encode()),
    "in hexadecimal": lambda secret: b"0x" + secret.encode().hex().encode(),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_it_is_found_however_it_was_written(how: str) -> None:
    secret = canary("key")
    said = leaks({"key": secret, "other": canary("other")}, [("the log", b"..." + WRITTEN[how](secret) + b"...")])
    assert said
    assert all(line.startswith("key is in the log (") for line in said)
    assert secret not in "".join(said)


def test_nothing_is_found_where_nothing_is() -> None:
    assert leaks({"key": canary("key")}, [("the log", canary("key").encode())]) == []


def test_compressed_files_are_looked_into(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    secret = canary("key")
    (tmp_path / "log.gz").write_bytes(gzip.compress(f"... {secret} ...".encode()))
    pq.write_table(pa.table({"a": [secret] * 1000}), tmp_path / "part.parquet", compression="zstd")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "password").write_text(secret)
    found = leaks({"key": secret}, files(tmp_path, without=[tmp_path / "own"]))
    assert {line.split(" (")[0] for line in found} >= {
        "key is in log.gz, decompressed", "key is in part.parquet, decoded",
    }  # fmt: skip
    assert not any("own" in line for line in found)
