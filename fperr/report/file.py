"""A report as a file: Parquet with the provenance and a digest of all of it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fperr.formats import FORMATS
from fperr.losses import loss_named
from fperr.storage import SEAL, is_sealed, is_whole
from fperr.theory.scenarios import SCENARIOS

_KEY = b"fperr"
_UNSEALED = 6  # the last schema version without a digest
_AGAIN = "measure again, or use the fperr that wrote it"


def parquet(table: pa.Table, content: Mapping[str, Any]) -> bytes:
    """A table as Parquet, with `content` as JSON in its metadata under the key `fperr`."""
    metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(content).encode()}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue()


def content_of(table: pa.Table) -> dict[str, Any]:
    """What `parquet` put beside the table; empty where there is nothing."""
    found = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    return found if isinstance(found, dict) else {}


def to_bytes(
    frame: pd.DataFrame, provenance: Mapping[str, Any], version: int, stamp: str = SEAL
) -> bytes:
    """Frame and provenance, to be sealed.

    Args:
        frame: the rows.
        provenance: by network.
        version: of the schema.
        stamp: holds the place of the digest.
    """
    content = {"schema_version": version, "seal": stamp, "provenance": provenance}
    return parquet(pa.Table.from_pandas(frame, preserve_index=False), content)


def from_bytes(
    content: bytes, source: str | Path, version: int, columns: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, Any], bool]:
    """Read what was written from `to_bytes`, sealed.

    Args:
        content: of the file.
        source: what the file is called.
        version: of the schema; that without a digest is read, too.
        columns: their pandas dtypes.

    Returns:
        Frame and provenance, and whether a digest has confirmed them.

    Raises:
        ValueError: no such file, of another version, damaged, or with something else in it.
    """
    if is_sealed(content) and not is_whole(content):
        raise ValueError(
            f"{source} is damaged or was changed: its digest is not that of its content. Start the "
            "measurement again in its folder (rows that are whole are used), or take a copy"
        )
    try:
        table = pq.read_table(io.BytesIO(content))
        about = content_of(table)
    except (pa.ArrowException, OSError, ValueError) as fault:
        raise ValueError(
            f"{source} cannot be read as Parquet ({str(fault).splitlines()[0]}): expected a "
            "measurements.parquet that fperr wrote; it may be cut off, measure again"
        ) from fault
    if not about:
        raise ValueError(
            f"{source} is a Parquet file, but not one that fperr wrote: expected a "
            "measurements.parquet, as `fperr measure` or Report.to_parquet writes it"
        )
    found = about.get("schema_version")
    if found not in (version, _UNSEALED):
        raise ValueError(
            f"{source} has schema version {found}, this fperr reads {version}: {_AGAIN}"
        )
    if found > _UNSEALED and not is_sealed(content):
        raise ValueError(f"{source} has lost its digest: it is damaged or forged, {_AGAIN}")
    if table.column_names != list(columns):
        raise ValueError(
            f"{source} does not have the columns of schema version {found}: missing "
            f"{sorted(columns.keys() - set(table.column_names))}, unknown "
            f"{sorted(set(table.column_names) - columns.keys())}, or in another order: {_AGAIN}"
        )
    try:
        frame = table.to_pandas().astype(dict(columns))
    except (TypeError, ValueError, pa.ArrowException) as fault:
        raise ValueError(f"{source} holds values of other types ({fault}): {_AGAIN}") from fault
    provenance = about.get("provenance")
    fault_ = _fault(frame, provenance)
    if fault_ is not None:
        raise ValueError(f"{source} is no measurement that fperr made: {fault_}; {_AGAIN}")
    assert isinstance(provenance, dict)
    return frame, provenance, is_sealed(content)


def _fault(frame: pd.DataFrame, provenance: object) -> str | None:
    """What is wrong with the values; None where they can be shown."""
    if not len(frame):
        return "expected at least one row, got none"
    if not isinstance(provenance, dict):
        return f"expected a provenance by network, got {type(provenance).__name__}"
    networks = set(frame["network"].dropna())
    if frame["network"].isna().any() or not networks <= provenance.keys():
        return f"expected rows of the networks {sorted(provenance)}, got {sorted(networks)}"
    for network, about in provenance.items():
        for path in (("settings", "digits"), ("model", "classes"), ("reference", "engine")):
            group = about.get(path[0]) if isinstance(about, dict) else None
            if not isinstance(group, dict) or path[1] not in group:
                return f"expected {'.'.join(path)} in the provenance of {network}, got none"
        if not isinstance(about.get("interrupted"), bool):
            return f"expected interrupted in the provenance of {network}, got no yes or no"
    for column, known in (("scenario", SCENARIOS), ("format", FORMATS)):
        unknown = set(frame[column].fillna("nothing")) - known.keys()
        if unknown:
            return f"expected a {column} out of {', '.join(known)}, got {sorted(unknown)}"
    try:
        for loss in frame["loss"].unique():
            loss_named(loss)
    except (TypeError, ValueError, AttributeError) as fault:
        return str(fault)
    return None
