"""A trace on disk: numbered Parquet files, each complete as soon as it has its name."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from fperr.errors import MissingDataError

TABLES = ("steps", "errors", "points")
SCHEMA_VERSION = 1
_ABOUT = "trace.json"
_ROWS, _SECONDS = 200_000, 5.0  # written when either is reached


class Writer:
    """Appends rows to the tables of a trace; a kill loses what was not written yet: 5 s at most.

    Args:
        folder: made if it is missing, and must be empty.
        about: what the trace says of itself.

    Raises:
        ValueError: the folder is not empty.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} exists and is not an empty folder: give another out=")
        for name in TABLES:
            (folder / name).mkdir(parents=True)
        self._folder = folder
        self._waiting: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._written = dict.fromkeys(TABLES, 0)
        self._since = time.monotonic()
        self.tell({**about, "is_complete": False})

    def tell(self, about: dict[str, Any]) -> None:
        """What the trace says of itself, replaced as a whole."""
        content = {"schema_version": SCHEMA_VERSION, **about}
        _replace(self._folder / _ABOUT, json.dumps(content, indent=1).encode())

    def add(self, name: str, rows: pa.Table) -> None:
        """Append rows to a table."""
        self._waiting[name].append(rows)
        many = sum(t.num_rows for tables in self._waiting.values() for t in tables) >= _ROWS
        if many or self.is_due:
            self.flush()

    @property
    def is_due(self) -> bool:
        """The last writing was long ago."""
        return time.monotonic() - self._since >= _SECONDS

    def flush(self) -> None:
        """Write what waits."""
        for name, tables in self._waiting.items():
            if tables:
                sink = pa.BufferOutputStream()
                whole = pa.concat_tables(tables).unify_dictionaries()
                names = [f.name for f in whole.schema if pa.types.is_dictionary(f.type)]
                pq.write_table(whole, sink, compression="lz4", use_dictionary=names)
                path = self._folder / name / f"{self._written[name]:06d}.parquet"
                _replace(path, sink.getvalue())
                self._written[name] += 1
                tables.clear()
        self._since = time.monotonic()


def about(folder: Path) -> dict[str, Any]:
    """What a trace says of itself.

    Raises:
        MissingDataError: there is none.
        ValueError: it has another schema version.
    """
    path = folder / _ABOUT
    if not path.is_file():
        raise MissingDataError(f"{folder} holds no trace: {_ABOUT} is missing")
    found: dict[str, Any] = json.loads(path.read_text())
    if found["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{folder} has schema version {found['schema_version']}, this fperr reads "
            f"{SCHEMA_VERSION}: record again"
        )
    return found


def table(folder: Path, name: str, columns: list[str] | None) -> pd.DataFrame:
    """A table, or some of its columns, from disk; empty where nothing was written."""
    files = sorted((folder / name).glob("*.parquet"))
    if not files:
        return pd.DataFrame(columns=columns)
    found: pd.DataFrame = ds.dataset(files).to_table(columns=columns).to_pandas()
    return found


def _replace(path: Path, content: Any) -> None:
    """Write a file under another name first, so that it is whole or not there."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
