"""The checkout as a person uses it: commands, engines and a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Laptop:
    """The checkout as a person uses it, with a home of its own."""

    home: Path
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {**kept, "MARKETDATA_HOME": str(self.home), "COLUMNS": "200", **self.variables, **more}

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "marketdata"), *arguments],
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def marketdata(self, *arguments: str, code: int = 0, **more: str) -> str:
        """Standard output of a command that has to end with `code`."""
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=900)
        assert process.returncode == code, f"{arguments} ended with {process.returncode}\n{out}\n{err}"
        return out

    def query(self, sql: str) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = json.loads(self.marketdata("query", sql, "--format", "json"))
        return answer

    def last_run(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.home / "run.json").read_text())
        return content

    def messages(self) -> list[dict[str, Any]]:
        """Every committed message of the topic."""
        lines = self.marketdata("topics", "read", "commodity-prices", "--limit", "10000000")
        return [json.loads(line) for line in lines.splitlines()]
