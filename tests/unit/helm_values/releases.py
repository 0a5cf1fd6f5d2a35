"""The releases that `helm-values/README.md` installs, and the values each of them gets."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
VALUES = ROOT / "helm-values"
README = (VALUES / "README.md").read_text(encoding="utf-8")
ENVIRONMENTS = ("development", "production")
OWN = ("platform", "data-processing")
"""Components of this repository's own charts, tested with them."""

Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Release:
    """One `helm upgrade --install` of the README."""

    name: str
    chart: str
    version: str
    namespace: str
    files: tuple[str, ...]
    component: str


def releases() -> list[Release]:
    found = []
    for line in re.findall(r"^\$ (helm upgrade --install .+)$", README, re.MULTILINE):
        name, chart, *words = shlex.split(line)[3:]
        options = [(words[i], words[i + 1]) for i in range(0, len(words), 2)]
        files = tuple(Path(value).name for option, value in options if option == "--values")
        given = dict(options)
        if chart.startswith("deploy/"):
            continue
        component = files[0].removesuffix(".yaml")
        found.append(Release(name, chart, given["--version"], given["--namespace"], files, component))
    return found


def components() -> list[str]:
    return [release.component for release in releases()]


def files(component: str, environment: str) -> list[str]:
    """What is passed for a component there, in this order."""
    candidates = (component, f"{component}.generated", f"{component}.{environment}")
    return [f"{name}.yaml" for name in candidates if (VALUES / f"{name}.yaml").exists()]


def values(component: str, environment: str, *over: str) -> dict[str, Any]:
    """The overrides as Helm sees them: one file laid over the other."""
    merged: dict[str, Any] = {}
    for name in [*files(component, environment), *over]:
        merged = merge(merged, read(name))
    return merged


def read(name: str) -> dict[str, Any]:
    content = yaml.load((VALUES / name).read_text(encoding="utf-8"), Unique)  # noqa: S506 - a SafeLoader
    assert isinstance(content, dict), f"{name} is no mapping"
    return content


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Maps are merged, anything else is replaced, and null takes a key away."""
    merged = copy.deepcopy(under)
    for key, value in over.items():
        if value is None and key in merged:
            del merged[key]
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def leaves(value: Any, at: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Everything that is no map, with its path; a list is one leaf."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*at, str(key)))
    else:
        yield at, value


def texts(value: Any, at: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    """Every text, in lists too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(inner, (*at, str(key)))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts(inner, (*at, str(number)))
    elif isinstance(value, str):
        yield at, value


def under(value: dict[str, Any], path: str) -> Any:
    """What lies at `a.b.c`, or None."""
    found: Any = value
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


class Unique(yaml.CSafeLoader):
    """Refuses a key that is said twice, of which YAML would keep the last."""


def _mapping(loader: Unique, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise yaml.YAMLError(f"{node.start_mark}: said twice: {', '.join(twice)}")
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


Unique.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
