"""Schemas of the topics in a schema registry of Confluent's protocol, which refuses what older messages would break.

The messages stay plain JSON without a schema id: the registry is where people and other programs look a topic up, and
the judge of whether a change of a dataset lets its readers read what is already there (``BACKWARD``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from marketdata.errors import UnavailableError, UsageError
from marketdata.streaming.topics import Topic

COMPATIBILITY = "BACKWARD"
ANSWER_SECONDS = 30.0

_NEW, _KNOWN, _INCOMPATIBLE = 404, 200, 409
_HEADERS = {"Content-Type": "application/vnd.schemaregistry.v1+json"}


def register(url: str, topics: Iterable[Topic]) -> list[str]:
    """Register the schema of each topic that has one, as subject ``<topic>-value``; returns a line for each new one.

    Args:
        url: the registry, to where the protocol's paths begin.

    Raises:
        UsageError: a schema is not compatible with the topic's last one; it was not registered.
        UnavailableError: the registry does not answer, or not as it should.
    """
    done = []
    for topic in topics:
        schema = topic.value_schema()
        if schema is None:
            continue
        subject = f"{topic.name}-value"
        _ask(url, "PUT", f"config/{subject}", {"compatibility": COMPATIBILITY})
        body = {"schemaType": "JSON", "schema": json.dumps(registered(schema))}
        if _ask(url, "POST", f"subjects/{subject}", body, _KNOWN, _NEW)[0] == _KNOWN:
            continue
        status, answer = _ask(url, "POST", f"subjects/{subject}/versions", body, _KNOWN, _INCOMPATIBLE)
        if status == _INCOMPATIBLE:
            raise UsageError(
                f"{subject} at {url}: readers of the new schema could not read older messages: {answer['message']}; "
                "it was not registered",
                "add columns that are not required, and neither remove nor change one; or take another topic",
            )
        done.append(f"{subject}: registered as schema {answer['id']}")
    return done


def registered(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A message's schema in the form that registries judge.

    They read draft 7 at most; we use nothing that differs in it. And it says that there are no further fields, which is
    what producers of this version write: only then may a later one add a field.
    """
    return {**schema, "$schema": "http://json-schema.org/draft-07/schema#", "additionalProperties": False}


def _ask(url: str, method: str, path: str, body: Mapping[str, Any], *good: int) -> tuple[int, dict[str, Any]]:
    import requests

    try:
        answer = requests.request(
            method, f"{url}/{path}", json=body, headers=_HEADERS, allow_redirects=False, timeout=ANSWER_SECONDS
        )
        content = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise UnavailableError(
            f"the schema registry at {url} did not answer {method} {path}: {type(error).__name__}",
            "check SCHEMA_REGISTRY_URL and that the registry is up",
        ) from error
    if answer.status_code not in (good or (_KNOWN,)):
        says = content.get("message", "no reason")
        raise UnavailableError(f"the schema registry at {url} refused {method} {path}: {answer.status_code}, {says}")
    return answer.status_code, content
