"""Named compute profiles: what a task's container asks for, what it may use, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from kubernetes.utils import parse_quantity  # type: ignore[import-untyped]

from marketdata.errors import UsageError


@dataclass(frozen=True)
class ComputeProfile:
    """Resources of a task's base container, in Kubernetes quantities, as (request, limit).

    Args:
        deadline_seconds: the pod is ended after it, however far it got; a run has 3600 s, retries included.
    """

    cpu: tuple[str, str]
    memory: tuple[str, str]
    ephemeral_storage: tuple[str, str]
    deadline_seconds: int

    @property
    def requests(self) -> dict[str, str]:
        return {"cpu": self.cpu[0], "memory": self.memory[0], "ephemeral-storage": self.ephemeral_storage[0]}

    @property
    def limits(self) -> dict[str, str]:
        return {"cpu": self.cpu[1], "memory": self.memory[1], "ephemeral-storage": self.ephemeral_storage[1]}


PROFILES = {
    "small": ComputeProfile(("500m", "1000m"), ("512Mi", "1Gi"), ("256Mi", "512Mi"), deadline_seconds=900),
    "medium": ComputeProfile(("1000m", "2000m"), ("2Gi", "4Gi"), ("256Mi", "512Mi"), deadline_seconds=1800),
}
"""`small` is the platform's default; `medium` holds a decade of daily prices in pandas at once."""


def get(name: str) -> ComputeProfile:
    """The profile of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PROFILES:
        raise UsageError(f"no compute profile is named {name!r}", f"profiles: {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


def larger_than(memory: str) -> str:
    """Name of the smallest profile with more memory than this quantity; empty where there is none."""
    more = {name: parse_quantity(profile.memory[1]) for name, profile in PROFILES.items()}
    larger = [name for name, limit in more.items() if limit > parse_quantity(memory)]
    return min(larger, key=more.__getitem__, default="")
