"""Batches: the immutable, checksummed hand-over between tasks.

``<lake>/batches/<dataset>/<interval-start>/<batch-id>/`` holds ``part-*.parquet``, other files and ``manifest.json``.
Every file is named by its content and written first, the manifest last and create-if-absent: a manifest that exists is
complete, on a disk and on S3 alike, and two tries of one step cannot tear each other's output.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Self

from marketdata.errors import BadDataError, MarketdataError, UnavailableError, UsageError
from marketdata.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from obstore.store import ObjectStore

MANIFEST = re.compile(r"batches/[a-z0-9_]+/\d{4}-\d{2}-\d{2}/[A-Za-z0-9_-]+/manifest\.json")
"""Where below ``LAKE_URI`` a manifest may lie; nothing else is opened as one."""

_STATUS = re.compile(r"(status code: \d{3}[A-Za-z ]*).*")
_FILE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")

ROWS_PER_PART = 250_000
"""Bounds a writer's memory; a reader holds one part at a time."""


def content_id(*parts: object) -> str:
    """Address of a step's output: a hash of what determines it, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Interval:
    """Days [start, end) of a run."""

    start: date
    end: date

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise UsageError(f"interval {self} is empty: its end must be after its start")

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"


@dataclass(frozen=True)
class File:
    """One file of a batch: its name in the folder, size, SHA-256, and rows where it is Parquet."""

    name: str
    size_bytes: int
    sha256: str
    rows: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a step handed over. Times are UTC; `counts` and `details` belong to the step."""

    dataset: str
    tenant: str
    batch_id: str
    step: str
    step_version: int
    run_id: str
    interval_start: date
    interval_end: date
    created_at: datetime
    parent: str | None = None
    schema_version: int = 1
    rows: int = 0
    size_bytes: int = 0
    parts: tuple[File, ...] = ()
    files: Mapping[str, File] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def interval(self) -> Interval:
        return Interval(self.interval_start, self.interval_end)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), default=lambda value: value.isoformat(), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """
        Raises:
            ValueError: it is not what `to_json` writes; KeyError, TypeError and RecursionError mean the same.
        """
        values = json.loads(text)
        values["interval_start"] = date.fromisoformat(values["interval_start"])
        values["interval_end"] = date.fromisoformat(values["interval_end"])
        values["created_at"] = datetime.fromisoformat(values["created_at"])
        values["parts"] = tuple(File(**part) for part in values["parts"])
        values["files"] = {name: File(**file) for name, file in values["files"].items()}
        manifest = cls(**values)
        for file in (*manifest.parts, *manifest.files.values()):
            if not _FILE.fullmatch(file.name):
                raise ValueError(f"{file.name!r} is not a file of this folder")
        return manifest


@dataclass(frozen=True)
class Batch:
    """A complete batch: its manifest and where it lies."""

    lake: Lake
    folder: str
    manifest: Manifest

    @property
    def uri(self) -> str:
        """Address of the manifest; what XCom carries."""
        return f"{self.lake.uri}/{self.folder}/manifest.json"

    def summary(self) -> dict[str, Any]:
        """What a step tells of its batch: where it is, how many rows, and what the step counted."""
        return {
            "batch": self.uri,
            "batch_id": self.manifest.batch_id,
            "rows": self.manifest.rows,
            **self.manifest.counts,
        }

    def file_uri(self, name: str) -> str:
        return f"{self.lake.uri}/{self.folder}/{self.manifest.files[name].name}"

    def tables(self, columns: Sequence[str] | None = None, coded: Sequence[str] = ()) -> Iterator[pa.Table]:
        """The rows, one part at a time, in order.

        Args:
            columns: the only ones to decode; default: all.
            coded: columns of text to leave dictionary-encoded, as the file has them; saves time where texts repeat.

        Raises:
            BadDataError: a part is missing or is not what the manifest says.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        for content in self.contents():
            # `read_table` would import pyarrow.dataset, a third of a second in every task.
            file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=list(coded))
            yield file.read(columns=None if columns is None else list(columns))

    def contents(self) -> Iterator[Any]:
        """The parts as they are stored: Parquet, one buffer at a time, in order.

        Raises:
            BadDataError: a part is missing or is not what the manifest says.
        """
        for part in self.manifest.parts:
            yield self._read(part)

    def read(self, name: str) -> bytes:
        """Another file of the batch, checked against its SHA-256."""
        return bytes(self._read(self.manifest.files[name]))

    def _read(self, file: File) -> Any:
        path = f"{self.folder}/{file.name}"
        content = self.lake.get(path)
        if content is None:
            raise BadDataError(
                f"{self.lake.uri}/{path} is missing, though its manifest is there", "run the step before again"
            )
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise BadDataError(
                f"{self.lake.uri}/{path} is not the file its manifest names (SHA-256 differs)",
                "run the step before again",
            )
        return content


class BatchWriter:
    """Writes one batch: parts and files as they come, the manifest on `commit`."""

    def __init__(self, lake: Lake, folder: str) -> None:
        self._lake = lake
        self._folder = folder
        self._parts: list[File] = []
        self._files: dict[str, File] = {}
        self._pending: list[pa.Table] = []

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Append rows; they are written in parts of `ROWS_PER_PART`."""
        import pyarrow as pa

        self._pending.append(pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows)
        while sum(len(table) for table in self._pending) >= ROWS_PER_PART:
            together = pa.concat_tables(self._pending)
            self._pending = [together.slice(ROWS_PER_PART)]
            self._write_part(together.slice(0, ROWS_PER_PART))

    def add_file(self, name: str, content: bytes) -> None:
        """Add a file of another kind; it is stored under a name that carries its hash."""
        stem, _, suffix = name.partition(".")
        self._files[name] = self._put(stem, suffix, content)

    def commit(self, manifest: Manifest) -> Batch:
        """Complete the batch. If another try has completed it in the meantime, its batch is the one that counts."""
        import pyarrow as pa

        rest = pa.concat_tables(self._pending) if self._pending else None
        if rest is not None and len(rest):
            self._write_part(rest)
        self._pending = []
        manifest = replace(
            manifest,
            rows=sum(part.rows for part in self._parts),
            size_bytes=sum(part.size_bytes for part in self._parts),
            parts=tuple(self._parts),
            files=self._files,
        )
        path = f"{self._folder}/manifest.json"
        if self._lake.put(path, manifest.to_json()):
            return Batch(self._lake, self._folder, manifest)
        return self._lake.open(f"{self._lake.uri}/{path}")

    def _write_part(self, table: pa.Table) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._parts.append(
            self._put(f"part-{len(self._parts):05d}", "parquet", memoryview(sink.getvalue()).cast("B"), len(table))
        )

    def _put(self, stem: str, suffix: str, content: Any, rows: int = 0) -> File:
        digest = hashlib.sha256(content).hexdigest()
        file = File(f"{stem}-{digest[:12]}.{suffix}", len(content), digest, rows)
        self._lake.put(f"{self._folder}/{file.name}", content)
        return file


class Lake:
    """The object store under ``LAKE_URI``: a folder or an S3 bucket. Objects are written once and never changed."""

    def __init__(self, settings: Settings) -> None:
        self.uri = settings.require("lake_uri").rstrip("/")
        self._store = open_store(self.uri, settings)
        self._tenant = settings.tenant

    def get(self, path: str) -> Any | None:
        """Content of an object (a buffer), or None where there is none."""
        from obstore.exceptions import BaseError

        try:
            return self._store.get(path).bytes()
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise self._unavailable("read", path, error) from None

    def put(self, path: str, content: Any) -> bool:
        """Create an object, whole or not at all; False if it was there already (it is left as it is)."""
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            self._store.put(path, content, mode="create")
        except AlreadyExistsError:
            return False
        except BaseError as error:
            raise self._unavailable("write", path, error) from None
        return True

    def path(self, uri: str) -> str:
        """An object's path in this lake."""
        path = uri.removeprefix(f"{self.uri}/")
        if path == uri or ".." in path.split("/"):
            raise UsageError(f"{uri[:500]} is not under LAKE_URI {self.uri}", "batches move only within one lake")
        return path

    def folder(self, dataset: str, interval: Interval, batch_id: str) -> str:
        return f"batches/{dataset}/{interval.start}/{batch_id}"

    def find(self, dataset: str, interval: Interval, batch_id: str) -> Batch | None:
        """The output of a step that has run before, or None."""
        folder = self.folder(dataset, interval, batch_id)
        content = self.get(f"{folder}/manifest.json")
        return None if content is None else self._batch(folder, bytes(content))

    def open(self, uri: str) -> Batch:
        """The batch whose manifest lies at `uri`.

        Raises:
            BadDataError: there is none, or what lies there is none.
            UsageError: no manifest can lie there, or it is another tenant's.
        """
        path = self.path(uri)
        if not MANIFEST.fullmatch(path):
            raise UsageError(f"{uri[:500]} is not the address of a manifest; nothing was read", "XCom carries it")
        content = self.get(path)
        if content is None:
            raise BadDataError(f"there is no batch at {uri}", "run the step before again")
        return self._batch(path.removesuffix("/manifest.json"), bytes(content))

    def _batch(self, folder: str, content: bytes) -> Batch:
        try:
            manifest = Manifest.from_json(content)
            if self.folder(manifest.dataset, manifest.interval, manifest.batch_id) != folder:
                raise ValueError("it names another batch")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MarketdataError) as error:
            raise BadDataError(
                f"{self.uri}/{folder}/manifest.json is not a manifest: {_first_line(error)}",
                "run the step before again",
            ) from error
        if manifest.tenant != self._tenant:
            raise UsageError(f"{self.uri}/{folder} is a batch of tenant {manifest.tenant}, not of {self._tenant}")
        return Batch(self, folder, manifest)

    def writer(self, dataset: str, interval: Interval, batch_id: str) -> BatchWriter:
        return BatchWriter(self, self.folder(dataset, interval, batch_id))

    def parent(self, batch: Batch) -> Batch:
        """The batch that `batch` was made from."""
        if batch.manifest.parent is None:
            raise UsageError(f"{batch.uri} is an extraction: it has no parent")
        return self.open(batch.manifest.parent)

    def _unavailable(self, verb: str, path: str, error: Exception) -> UnavailableError:
        why = store_says(error)
        return UnavailableError(f"cannot {verb} {self.uri}/{path}: {why}", "check LAKE_URI and the store behind it")


def store_says(error: Exception) -> str:
    """What went wrong with a store, without the body of its answer: that may repeat the key it was sent."""
    return _STATUS.sub(r"\1", _first_line(error))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def now() -> datetime:
    return datetime.now(UTC)


def open_store(uri: str, settings: Settings) -> ObjectStore:
    """The store at a ``file://`` or ``s3://`` address."""
    from obstore.store import LocalStore, S3Store

    if uri.startswith("file://"):
        return LocalStore(uri.removeprefix("file://"), mkdir=True)
    options: dict[str, str] = {"region": settings.aws_region}
    if settings.aws_endpoint_url:
        options["endpoint"] = settings.aws_endpoint_url
    if settings.aws_access_key_id and settings.aws_secret_access_key:
        options["access_key_id"] = settings.aws_access_key_id.get_secret_value()
        options["secret_access_key"] = settings.aws_secret_access_key.get_secret_value()
    plain = options.get("endpoint", "").startswith("http://")
    return S3Store.from_url(uri, config=options, client_options={"allow_http": plain})  # type: ignore[arg-type]
