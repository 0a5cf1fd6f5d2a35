"""Schemas of the topics in a schema registry of Confluent's protocol, which refuses what older messages would break.

The registry is where people and other programs look a topic up, and the judge of whether a change of a dataset lets its
readers read what is already there. JSON messages stay plain; an Avro message carries its schema's number (`avro`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from marketdata.errors import UnavailableError, UsageError
from marketdata.streaming.topics import Topic

COMPATIBILITY = {"JSON": "BACKWARD", "AVRO": "FULL"}
"""By the registry's word for a format. Avro's BACKWARD would let a column go that readers of the old schema need."""

ANSWER_SECONDS = 30.0

_GOOD, _NOT_FOUND, _REFUSED = 200, 404, 409
_NO_SUBJECT = 40401
_HEADERS = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
REMEDY = "add columns that are not required, and neither remove nor change one; or take another topic"


@dataclass(frozen=True)
class Subject:
    """A topic's schema as registries keep it.

    Args:
        name: ``<topic>-value``.
        kind: ``JSON`` or ``AVRO``.
    """

    name: str
    kind: str
    schema: dict[str, Any]

    @property
    def body(self) -> dict[str, str]:
        return {"schemaType": self.kind, "schema": json.dumps(self.schema)}


def subjects(topics: Iterable[Topic]) -> list[Subject]:
    """Those of the topics whose messages have a schema."""
    return [
        Subject(f"{topic.name}-value", topic.format.upper(), schema if topic.format == "avro" else _registered(schema))
        for topic in topics
        if (schema := topic.value_schema()) is not None
    ]


def compare(url: str, topics: Iterable[Topic]) -> list[str]:
    """A line for each schema that the registry does not have.

    Args:
        url: the registry, to where the protocol's paths begin.

    Raises:
        UnavailableError: the registry does not answer, or not as it should.
    """
    found = []
    for subject in subjects(topics):
        status, answer = _look_up(url, subject)
        if status == _NOT_FOUND:
            missing = answer.get("error_code") == _NO_SUBJECT
            found.append(f"{subject.name}: {'missing' if missing else 'the registry has another schema'}")
    return found


def register(url: str, topics: Iterable[Topic]) -> list[str]:
    """Register the schemas that the registry does not have; returns a line for each.

    Raises:
        UsageError: a schema is not compatible with the topic's last one; it names all such, and none was registered.
        UnavailableError: the registry does not answer, or not as it should.
    """
    new = [subject for subject in subjects(topics) if _look_up(url, subject)[0] == _NOT_FOUND]
    for subject in new:
        _ask(url, "PUT", f"config/{subject.name}", {"compatibility": COMPATIBILITY[subject.kind]})
    if refused := [subject for subject in new if not _is_compatible(url, subject)]:
        raise _incompatible(url, refused, "no schema was registered")
    done: list[str] = []
    for subject in new:
        status, answer = _ask(url, "POST", f"subjects/{subject.name}/versions", subject.body, _GOOD, _REFUSED)
        if status == _REFUSED:
            raise _incompatible(url, [subject], f"{len(done)} others were registered")
        done.append(f"{subject.name}: registered as schema {answer['id']}")
    return done


def id_of(url: str, topic: Topic) -> int:
    """The registry's number of a topic's schema.

    Raises:
        UsageError: it is not registered.
        UnavailableError: the registry does not answer, or not as it should.
    """
    (subject,) = subjects([topic])
    status, answer = _look_up(url, subject)
    if status == _NOT_FOUND:
        raise UsageError(f"{subject.name} at {url} has not the schema of today", "run: marketdata topics apply")
    return int(answer["id"])


def by_id(url: str, number: int) -> dict[str, Any] | None:
    """The schema of that number; None where the registry has none.

    Raises:
        UnavailableError: the registry does not answer, or not as it should.
    """
    status, answer = _ask(url, "GET", f"schemas/ids/{number}", None, _GOOD, _NOT_FOUND)
    schema: dict[str, Any] | None = json.loads(answer["schema"]) if status == _GOOD else None
    return schema


def breaks(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Why a topic cannot go from one registered schema to the other, column by column; none where it can.

    No registry is asked, and none accepts what this refuses but for a widened number.
    """
    old, new = _columns(before), _columns(after)
    renamed = [] if before.get("name") == after.get("name") else [f"{before['name']} is now {after['name']}"]
    gone = [f"{name} is gone" for name in old if name not in new]
    changed = [f"{name} has changed" for name in old if name in new and old[name] != new[name]]
    added = [f"{name} is new and required" for name in new if name not in old and new[name][1]]
    return renamed + gone + changed + added


def _columns(schema: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], bool]]:
    """Of each column what is judged, and whether it is required."""
    if "fields" in schema:
        fields = {field["name"]: (field, "default" not in field) for field in schema["fields"]}
    else:
        fields = {name: (field, name in schema["required"]) for name, field in schema["properties"].items()}
    said = ("doc", "description")
    return {
        name: ({word: value for word, value in field.items() if word not in said}, required)
        for name, (field, required) in fields.items()
    }


def _registered(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A message's JSON Schema in the form that registries judge.

    They read draft 7 at most; we use nothing that differs in it. And it says that there are no further fields, which is
    what producers of this version write: only then may a later one add a field.
    """
    return {**schema, "$schema": "http://json-schema.org/draft-07/schema#", "additionalProperties": False}


def _look_up(url: str, subject: Subject) -> tuple[int, dict[str, Any]]:
    return _ask(url, "POST", f"subjects/{subject.name}", subject.body, _GOOD, _NOT_FOUND)


def _is_compatible(url: str, subject: Subject) -> bool:
    path = f"compatibility/subjects/{subject.name}/versions/latest"
    status, answer = _ask(url, "POST", path, subject.body, _GOOD, _NOT_FOUND)
    return status == _NOT_FOUND or bool(answer["is_compatible"])


def _incompatible(url: str, refused: list[Subject], untouched: str) -> UsageError:
    said = []
    for subject in refused:
        latest = _ask(url, "GET", f"subjects/{subject.name}/versions/latest")[1]
        why = ", ".join(breaks(json.loads(latest["schema"]), subject.schema)) or "the registry does not say why"
        said.append(f"{subject.name}: {why}")
    return UsageError(
        f"the schema registry at {url} refuses what would part readers and messages: {'; '.join(said)}; {untouched}",
        REMEDY,
    )


def _ask(
    url: str, method: str, path: str, body: Mapping[str, Any] | None = None, *good: int
) -> tuple[int, dict[str, Any]]:
    import requests

    try:
        answer = requests.request(
            method,
            f"{url.rstrip('/')}/{path}",
            json=body,
            headers=_HEADERS,
            allow_redirects=False,
            timeout=ANSWER_SECONDS,
        )
        content = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise UnavailableError(
            f"the schema registry at {url} did not answer {method} {path}: {type(error).__name__}",
            "check SCHEMA_REGISTRY_URL and that the registry is up",
        ) from error
    if answer.status_code not in (good or (_GOOD,)):
        says = content.get("message", "no reason")
        raise UnavailableError(f"the schema registry at {url} refused {method} {path}: {answer.status_code}, {says}")
    return answer.status_code, content
