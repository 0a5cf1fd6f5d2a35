"""Downloads: pinned, and complete or not there."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from marketdata.engines import jars
from marketdata.engines.kafka import PINS
from marketdata.errors import UnavailableError


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "marketdata"


@pytest.fixture
def central(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A Maven Central that has these files, by name."""
    from jgo.maven import Artifact

    files: dict[str, bytes] = {}

    def resolve(artifact: Any) -> Path:
        if artifact.filename not in files:
            raise RuntimeError(f"no route to {artifact.filename}\nand more")
        path: Path = artifact.context.repo_cache / artifact.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[artifact.filename])
        return path

    monkeypatch.setattr(Artifact, "resolve", resolve)
    return files


def pin(content: bytes, coordinates: str) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {coordinates}\n"


def test_files_of_any_packaging_arrive_flat(tmp_path: Path, central: dict[str, bytes]) -> None:
    central |= {"a-1.jar": b"one", "b-2-all.tar.gz": b"two"}
    got = jars.fetch("# two files\n" + pin(b"one", "g:a:1:jar") + pin(b"two", "g.h:b:2:tar.gz:all"), tmp_path / "got")
    assert [file.read_bytes() for file in got] == [b"one", b"two"]
    assert sorted(file.name for file in (tmp_path / "got").iterdir()) == ["a-1.jar", "b-2-all.tar.gz"]


def test_a_download_that_breaks_off_is_tried_again(
    tmp_path: Path, central: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jgo.maven import Artifact

    central["a-1.jar"] = b"one"
    whole = Artifact.resolve
    tries = iter([ConnectionResetError, None])

    def resolve(artifact: Any) -> Path:
        if error := next(tries):
            raise error
        return whole(artifact)

    monkeypatch.setattr(Artifact, "resolve", resolve)
    (got,) = jars.fetch(pin(b"one", "g:a:1:jar"), tmp_path / "got")
    assert got.read_bytes() == b"one"


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(cache: Path, central: dict[str, bytes]) -> None:
    central["a-1.jar"] = b"other"

    def make(folder: Path) -> None:
        jars.fetch(pin(b"one", "g:a:1:jar"), folder)

    with pytest.raises(UnavailableError, match=r"g:a:1:jar from Maven Central is not the file that is pinned"):
        jars.cached("a", make)
    assert [path.name for path in cache.iterdir()] == ["a.lock"]


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, central: dict[str, bytes]) -> None:
    with pytest.raises(
        UnavailableError, match=r"g:a:1:jar could not be downloaded .*\(RuntimeError\); nothing"
    ) as caught:
        jars.fetch(pin(b"one", "g:a:1:jar"), tmp_path)
    assert "network once" in caught.value.remedy
    assert caught.value.exit_code == 69


def test_work_that_was_cut_off_is_done_again_and_complete_work_never(cache: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        (folder / "jar").write_text("half")
        made.append(folder)
        if len(made) == 1:
            raise KeyboardInterrupt

    (cache / "a.forming-left").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        jars.cached("a", make)
    assert not (cache / "a").exists()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: jars.cached("a", make), range(4))) == {cache / "a"}
    assert len(made) == 2
    assert sorted(path.name for path in cache.iterdir()) == ["a", "a.lock"]


def test_kafkas_pins_are_complete_lines() -> None:
    lines = [line.split() for line in PINS.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 92
    assert all(len(checksum) == 64 and coordinates.count(":") >= 3 for checksum, coordinates in lines)
