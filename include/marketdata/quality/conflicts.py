"""Rows with the same key and the same `as_of` that disagree: nobody can say which of them is right."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marketdata.datasets import Dataset
from marketdata.quality.frames import Chunk, encoded, identities

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

NAMED = 3
"""Conflicts named in a failure."""


@dataclass(frozen=True)
class Evidence:
    """What is kept of a chunk until every row of the batch is known: about 45 bytes a row.

    Args:
        keys: hash of each row's key and `as_of`.
        contents: hash of those and of the business columns.
        sorted_keys: `keys` in ascending order.
        where: where each row comes from, to name it.
    """

    keys: NDArray[np.uint64]
    contents: NDArray[np.uint64]
    sorted_keys: NDArray[np.uint64]
    where: pa.Table


def evidence(dataset: Dataset, chunk: Chunk) -> Evidence:
    import numpy as np
    import pyarrow as pa

    keys, contents = identities(dataset, chunk)
    codes = chunk.frame["series"].cat.codes.to_numpy()
    names: Any = chunk.frame["series"].cat.categories.to_numpy()
    where = {
        "series": pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=codes < 0), names),
        "event_time": pa.array(chunk.frame[dataset.event_time].to_numpy()),
        "origin": encoded(chunk.table["origin"]),
        "origin_row": chunk.table["origin_row"],
    }
    return Evidence(keys, contents, np.sort(keys), pa.table(where))


def conflicts(chunks: list[tuple[Evidence, NDArray[np.bool_]]]) -> tuple[int, str]:
    """Keys whose rows disagree: how many, and the first of them in words.

    Args:
        chunks: evidence of each chunk, and which of its rows were accepted; the others don't count.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    merged = np.concatenate([np.empty(0, dtype=np.uint64), *(kept.sorted_keys for kept, _ in chunks)])
    if len(chunks) > 1:
        merged.sort(kind="stable")  # sorted runs: a merge
    repeated = merged[1:][merged[1:] == merged[:-1]]
    if not len(repeated):
        return 0, ""
    parts = []
    for kept, accepted in chunks:
        place = np.minimum(np.searchsorted(repeated, kept.keys), len(repeated) - 1)
        rows = np.flatnonzero((repeated[place] == kept.keys) & accepted)
        where = kept.where.take(pa.array(rows, pa.int64())).to_pandas()
        parts.append(where.assign(key=kept.keys[rows], content=kept.contents[rows]))
    candidates = pd.concat(parts, ignore_index=True)
    distinct = candidates.drop_duplicates(["key", "content"])
    disagreeing = distinct[distinct.duplicated("key", keep=False)]
    named = [_named(rows) for _, rows in itertools.islice(disagreeing.groupby("key", sort=False), NAMED)]
    return int(disagreeing["key"].nunique()), "; ".join(named)


def _named(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    places = [
        f"{origin or 'the source'} row {row}" for origin, row in zip(rows["origin"], rows["origin_row"], strict=True)
    ]
    return f"{first['series']} {first['event_time']:%Y-%m-%dT%H:%M:%SZ} in {' and '.join(places[:NAMED])}"
