"""The files of a trace: numbered Parquet files, each complete as soon as it has its name."""

import json
import secrets
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fperr.errors import MissingDataError, StorageError
from fperr.storage import SEAL, is_leftover, is_whole, prepare, read, sealed, write

TABLES = ("steps", "errors", "points")
SCHEMA_VERSION = 3
_UNSEALED = 1  # the last schema version without digests
_DESCRIPTION_FILE = "trace.json"
_STAMP_KEY = b"fperr"  # of a Parquet file's metadata
_ROWS, _SECONDS = 200_000, 5.0  # rows are written when one of the two limits is reached


class TraceWriter:
    """Appends rows to the tables of a trace.

    Rows wait in memory. They are written when rows come and the last writing was 5 s ago or 200,000
    rows wait, or when the caller flushes, as the recorder does before an exact comparison. A kill
    loses the rows that wait.

    Args:
        folder: Folder of the trace: made if it is missing, and empty.
        description: Settings and versions, for `trace.json`.

    Raises:
        ValueError: the folder is not empty, or cannot be made.
        StorageError: it cannot be written to; so do `describe`, `add` and `flush`.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        if folder.exists() and (not folder.is_dir() or not _is_empty(folder)):
            raise ValueError(f"{folder} exists and is not an empty folder: give another out=")
        prepare(folder)
        try:
            for name in TABLES:
                (folder / name).mkdir()
        except OSError as fault:  # another recording began in it at the same time
            raise StorageError(
                f"{folder} cannot be used ({fault.strerror}): give another out="
            ) from fault
        self._folder, self._run = folder, secrets.token_hex(8)
        self._waiting: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._file_counts = dict.fromkeys(TABLES, 0)
        self._last_written = time.monotonic()
        self.describe({**description, "is_complete": False})

    def describe(self, description: dict[str, Any]) -> None:
        """Replace the description of the trace as a whole."""
        content = {
            "schema_version": SCHEMA_VERSION,
            **description,
            "files": self._file_counts,
            "run": self._run,
            "seal": SEAL,
        }
        write(self._folder / _DESCRIPTION_FILE, sealed(json.dumps(content, indent=1).encode()))

    def add(self, name: str, rows: pa.Table) -> None:
        """Append rows to a table."""
        self._waiting[name].append(rows)
        is_full = sum(t.num_rows for tables in self._waiting.values() for t in tables) >= _ROWS
        if is_full or self.is_due:
            self.flush()

    @property
    def is_due(self) -> bool:
        """Whether the last writing was long enough ago."""
        return time.monotonic() - self._last_written >= _SECONDS

    def flush(self) -> None:
        """Write the rows that wait, a new file for each table that has some."""
        for name, tables in self._waiting.items():
            if tables:
                sink = pa.BufferOutputStream()
                rows = pa.concat_tables(tables).unify_dictionaries()
                path = _path(self._folder, name, self._file_counts[name])
                stamp = {_STAMP_KEY: _stamp(path, self._run).encode()}
                rows = rows.replace_schema_metadata({**(rows.schema.metadata or {}), **stamp})
                coded = [f.name for f in rows.schema if pa.types.is_dictionary(f.type)]
                pq.write_table(rows, sink, compression="lz4", use_dictionary=coded)
                write(path, sealed(sink.getvalue().to_pybytes()))
                self._file_counts[name] += 1
                tables.clear()
        self._last_written = time.monotonic()


def read_description(folder: Path) -> dict[str, Any]:
    """Read the description of a trace: settings, versions, counts.

    Raises:
        MissingDataError: there is none.
        ValueError: it has another schema version, or is damaged.
    """
    path = folder / _DESCRIPTION_FILE
    if not path.is_file():
        raise MissingDataError(f"{folder} holds no trace: {_DESCRIPTION_FILE} is missing")
    content = path.read_bytes()
    try:
        stored = json.loads(content)
    except ValueError:
        stored = None
    if isinstance(stored, dict) and stored.get("schema_version") == _UNSEALED:
        raise ValueError(
            f"{folder} has schema version {_UNSEALED}, this fperr reads {SCHEMA_VERSION}: record "
            "again"
        )
    if not isinstance(stored, dict) or not is_whole(content):
        raise ValueError(f"{path} is damaged: its digest is not that of its content; record again")
    if stored.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{folder} has schema version {stored.get('schema_version')}, this fperr reads "
            f"{SCHEMA_VERSION}: record again"
        )
    return {name: value for name, value in stored.items() if name != "seal"}


def read_table(folder: Path, name: str, columns: list[str] | None) -> pd.DataFrame:
    """Read a table, or some of its columns; empty where nothing was written.

    Raises:
        ValueError: a file of it is damaged or missing; names it.
    """
    file_names = sorted(path.name for path in (folder / name).glob("*.parquet"))
    description = read_description(folder)
    # after a kill the description counts too few; after a loss the folder holds too few
    count = max(len(file_names), description["files"][name])
    if not count:
        return pd.DataFrame(columns=columns)
    run = description["run"]
    tables = [_read_file(_path(folder, name, number), run, columns) for number in range(count)]
    frame: pd.DataFrame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    return frame


def _read_file(path: Path, run: str, columns: list[str] | None) -> pa.Table:
    """Read a file of a table, and check that this run wrote it."""
    try:
        content = read(path)
    except OSError as fault:
        raise ValueError(
            f"{path} cannot be read ({fault.strerror}): that part of the trace is lost, record "
            "again"
        ) from fault
    is_of_run = _stamp(path, run).removeprefix(SEAL).encode() in content
    if not is_of_run or not is_whole(content):
        raise ValueError(
            f"{path} is damaged, or of another trace: its digest is not that of its "
            "content; record again"
        )
    return pq.read_table(pa.BufferReader(content), columns=columns).replace_schema_metadata(None)


def _path(folder: Path, name: str, number: int) -> Path:
    return folder / name / f"{number:06d}.parquet"


def _stamp(path: Path, run: str) -> str:
    """The text in a file's metadata: where its digest goes, the run, and the file's own name."""
    return f"{SEAL} {run} {path.parent.name}/{path.name};"


def _is_empty(folder: Path) -> bool:
    return all(is_leftover(path.name) for path in folder.iterdir())
