"""Java programs from Maven Central: pinned by checksum, cached once for every checkout of this machine."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from marketdata.errors import UnavailableError


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the machine's cache; `make` fills it the first time.

    It is filled under another name and renamed when complete, so that work that was cut off never counts as done. Two
    callers at once make it once.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marketdata"
    folder = root / name
    if folder.is_dir():
        return folder
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{name}.lock"):
        if not folder.is_dir():
            for left in root.glob(f"{name}.forming-*"):
                shutil.rmtree(left, ignore_errors=True)
            forming = Path(tempfile.mkdtemp(prefix=f"{name}.forming-", dir=root))
            forming.chmod(0o755)
            try:
                make(forming)
                forming.rename(folder)
            finally:
                shutil.rmtree(forming, ignore_errors=True)
    return folder


def fetch(pins: str, folder: Path) -> list[Path]:
    """Download files into a folder and compare their checksums; one that does not come is asked for three times.

    Args:
        pins: a line for each file: sha256 and ``group:artifact:version:packaging[:classifier]``; # begins a comment.

    Raises:
        UnavailableError: Maven Central cannot be reached, or sent something else.
    """
    lines = [line.split() for line in pins.splitlines() if line and not line.startswith("#")]
    repository = folder / "repository"
    with ThreadPoolExecutor(max_workers=8) as pool:
        files = list(pool.map(lambda line: _fetch_one(line[1], line[0], repository), lines))
    kept = [file.rename(folder / file.name) for file in files]
    shutil.rmtree(repository)
    return kept


def _fetch_one(coordinates: str, sha256: str, repository: Path) -> Path:
    again = Retrying(stop=stop_after_attempt(3), retry=retry_if_exception_type(UnavailableError), reraise=True)
    tries = itertools.count()
    return again(lambda: _try_to_fetch(coordinates, sha256, repository / str(next(tries))))


def _try_to_fetch(coordinates: str, sha256: str, repository: Path) -> Path:
    from jgo.maven import MavenContext

    group, artifact, version, packaging, *classifier = coordinates.split(":")
    component = MavenContext(repo_cache=repository, timeout=60).project(group, artifact).at_version(version)
    try:
        file = Path(component.artifact("".join(classifier), packaging).resolve())
    except Exception as error:  # jgo passes on whatever its HTTP library raises
        raise UnavailableError(
            f"{coordinates} could not be downloaded from Maven Central ({type(error).__name__}); nothing was kept",
            "connect this machine to the network once; after that its cache serves",
        ) from error
    with file.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
            raise UnavailableError(f"{coordinates} from Maven Central is not the file that is pinned; nothing was kept")
    return file
