"""Java programs from Maven Central, cached for every checkout of this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from marketdata.errors import UnavailableError

if TYPE_CHECKING:
    from jgo.maven import MavenContext


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the machine's cache; `make` fills it the first time.

    It is filled under another name and renamed when complete: a download that was cut off never counts as one. Two at
    once make it once.
    """
    from filelock import FileLock

    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marketdata"
    folder = root / name
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{name}.lock"):
        if not folder.is_dir():
            for left in root.glob(f"{name}.forming-*"):
                shutil.rmtree(left, ignore_errors=True)
            forming = Path(tempfile.mkdtemp(prefix=f"{name}.forming-", dir=root))
            try:
                make(forming)
                forming.rename(folder)
            finally:
                shutil.rmtree(forming, ignore_errors=True)
    return folder


def fetch(coordinates: str, folder: Path) -> None:
    """Download jars with all they depend on.

    Raises:
        UnavailableError: Maven Central cannot be reached, or sent something else.
    """
    from jgo.env import EnvironmentBuilder, LinkStrategy

    with tempfile.TemporaryDirectory(dir=folder) as work:
        builder = EnvironmentBuilder(_maven(Path(work)), cache_dir=Path(work) / "env", link_strategy=LinkStrategy.HARD)
        try:
            downloaded = builder.from_endpoint(coordinates).all_jars
        except Exception as error:  # jgo raises whatever its HTTP library does
            raise _unreachable(coordinates.partition("+")[0], error) from error
        for jar in downloaded:
            if not zipfile.is_zipfile(jar):
                raise UnavailableError(f"{jar.name} from Maven Central is no jar; nothing was kept", "try again")
            jar.replace(folder / jar.name)


def fetch_one(group: str, artifact: str, version: str, packaging: str, folder: Path, classifier: str = "") -> Path:
    """Download one file, of any packaging, without what it depends on.

    Raises:
        UnavailableError: Maven Central cannot be reached.
    """
    component = _maven(folder).project(group, artifact).at_version(version)
    try:
        return Path(component.artifact(classifier, packaging).resolve())
    except Exception as error:
        raise _unreachable(f"{group}:{artifact}:{version}", error) from error


def _maven(cache: Path) -> MavenContext:
    from jgo.maven import MavenContext

    return MavenContext(repo_cache=cache / "repository", timeout=60)


def _unreachable(what: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"{what} could not be downloaded from Maven Central, and nothing was kept: {str(error).splitlines()[0][:200]}",
        "connect this machine to the network once, after that the cache serves",
    )
