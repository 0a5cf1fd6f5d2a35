"""Secrets the embedded engines make for themselves."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path


def keep(path: Path) -> str:
    """The secret in this file, made and stored for its owner alone the first time; two at once get the same one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        try:
            os.link(name, path)
        except FileExistsError:
            pass
        finally:
            Path(name).unlink()
    return path.read_text().strip()
