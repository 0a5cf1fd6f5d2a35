"""Secrets that are looked for afterwards, in every form they could have taken, wherever something is written to."""

from __future__ import annotations

import base64
import gzip
import html
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

SHORTEST = 8
"""Bytes a form has at least: what is shorter is found by chance."""


def canary(name: str) -> str:
    """A value nobody else has, with characters that every encoding writes differently."""
    return f"{name}/{secrets.token_hex(12)}+&<>="


def forms(secret: str) -> dict[str, bytes]:
    """The secret as it is, and as it looks in addresses, JSON, HTML, hexadecimal and base 64."""
    raw = secret.encode()
    found = {
        "raw": raw,
        "in an address": quote(secret, safe="").encode(),
        "in a path": quote(secret).encode(),
        "in a form": quote_plus(secret).encode(),
        "in JSON": json.dumps(secret)[1:-1].encode(),
        "in HTML": html.escape(secret).encode(),
        "in hexadecimal": raw.hex().encode(),
        "in HEXADECIMAL": raw.hex().upper().encode(),
        "backwards": raw[::-1],
    }
    for shift in range(3):
        # The characters that depend on what stands before and behind are left out.
        first, last = (shift * 8 + 5) // 6, (shift + len(raw)) * 8 // 6
        for alphabet, encode in (("base 64", base64.b64encode), ("base 64 of addresses", base64.urlsafe_b64encode)):
            found[f"in {alphabet}, shifted by {shift}"] = encode(bytes(shift) + raw)[first:last]
    return {form: text for form, text in found.items() if len(text) >= SHORTEST}


def leaks(known: Mapping[str, str], places: Iterable[tuple[str, bytes]]) -> list[str]:
    """Which secret is where, in which form; never the secret itself."""
    needles = [(name, form, text) for name, secret in known.items() for form, text in forms(secret).items()]
    return sorted(
        {
            f"{name} is in {place} ({form})"
            for place, content in places
            for name, form, text in needles
            if text in content
        }
    )


def files(folder: Path, without: Iterable[Path] = ()) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, and what compressed ones hold."""
    left_out = set(without)
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.is_symlink() or left_out & {file, *file.parents}:
            continue
        place, content = file.relative_to(folder).as_posix(), file.read_bytes()
        yield place, content.rstrip(b"\0")  # engines reserve megabytes of nothing
        if content[:2] == b"\x1f\x8b":
            yield f"{place}, decompressed", gzip.decompress(content)
        if content[:4] == b"PAR1":
            yield f"{place}, decoded", _rows(file)


def _rows(file: Path) -> bytes:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    return json.dumps([table.read().to_pylist(), str(table.schema_arrow.metadata)], default=str).encode()
