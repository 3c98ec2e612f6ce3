"""A trace on disk: numbered Parquet files, each complete as soon as it has its name."""

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
SCHEMA_VERSION = 2
_UNSEALED = 1  # the last schema version without digests
_ABOUT = "trace.json"
_KEY = b"fperr"
_ROWS, _SECONDS = 200_000, 5.0  # written when either is reached


class Writer:
    """Appends rows to the tables of a trace.

    They are written when they come and the last writing was 5 s ago, or the caller flushes, as the
    recorder does before an exact comparison. A kill loses what has not been written.

    Args:
        folder: made if it is missing, and must be empty.
        about: what the trace says of itself.

    Raises:
        ValueError: the folder is not empty, or cannot be made.
        StorageError: it cannot be written to; so do `tell`, `add` and `flush`.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
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
        self._written = dict.fromkeys(TABLES, 0)
        self._since = time.monotonic()
        self.tell({**about, "is_complete": False})

    def tell(self, about: dict[str, Any]) -> None:
        """What the trace says of itself, replaced as a whole."""
        content = {
            "schema_version": SCHEMA_VERSION,
            **about,
            "files": self._written,
            "run": self._run,
            "seal": SEAL,
        }
        write(self._folder / _ABOUT, sealed(json.dumps(content, indent=1).encode()))

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
                path = _path(self._folder, name, self._written[name])
                metadata = {**(whole.schema.metadata or {}), _KEY: _stamp(path, self._run).encode()}
                whole = whole.replace_schema_metadata(metadata)
                names = [f.name for f in whole.schema if pa.types.is_dictionary(f.type)]
                pq.write_table(whole, sink, compression="lz4", use_dictionary=names)
                write(path, sealed(sink.getvalue().to_pybytes()))
                self._written[name] += 1
                tables.clear()
        self._since = time.monotonic()


def about(folder: Path) -> dict[str, Any]:
    """What a trace says of itself.

    Raises:
        MissingDataError: there is none.
        ValueError: it has another schema version, or is damaged.
    """
    path = folder / _ABOUT
    if not path.is_file():
        raise MissingDataError(f"{folder} holds no trace: {_ABOUT} is missing")
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


def table(folder: Path, name: str, columns: list[str] | None) -> pd.DataFrame:
    """A table, or some of its columns, from disk; empty where nothing was written.

    Raises:
        ValueError: a file of it is damaged or missing; names it.
    """
    listed = sorted(path.name for path in (folder / name).glob("*.parquet"))
    stored = about(folder)
    count = max(len(listed), stored["files"][name])
    if not count:
        return pd.DataFrame(columns=columns)
    run = stored["run"]
    parts = [_part(_path(folder, name, number), run, columns) for number in range(count)]
    found: pd.DataFrame = pa.concat_tables(parts).unify_dictionaries().to_pandas()
    return found


def _part(path: Path, run: str, columns: list[str] | None) -> pa.Table:
    """One file of a table, as this run wrote it."""
    try:
        content = read(path)
    except OSError as fault:
        raise ValueError(
            f"{path} cannot be read ({fault.strerror}): that part of the trace is lost, record "
            "again"
        ) from fault
    is_own = _stamp(path, run).removeprefix(SEAL).encode() in content
    if not is_own or not is_whole(content):
        raise ValueError(
            f"{path} is damaged, or of another trace: its digest is not that of its "
            "content; record again"
        )
    return pq.read_table(pa.BufferReader(content), columns=columns).replace_schema_metadata(None)


def _path(folder: Path, name: str, number: int) -> Path:
    return folder / name / f"{number:06d}.parquet"


def _stamp(path: Path, run: str) -> str:
    """The place of a file's digest, and which part of which trace it is."""
    return f"{SEAL} {run} {path.parent.name}/{path.name};"


def _is_empty(folder: Path) -> bool:
    return all(is_leftover(path.name) for path in folder.iterdir())
