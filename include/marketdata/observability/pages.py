"""Pages for people, made from templates: whatever a source said is escaped, and a name a template lacks is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def rendered(template: Path, filters: Mapping[str, Callable[..., Any]], **values: Any) -> bytes:
    """The page, UTF-8.

    Args:
        template: of Jinja; it may include others of its folder.
        filters: functions the template calls by these names.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(filters)
    return environment.get_template(template.name).render(values).encode()
