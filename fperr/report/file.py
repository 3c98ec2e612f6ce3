"""Writes and reads a report as a Parquet file, with its provenance and a digest."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fperr.formats import FORMATS
from fperr.losses import loss_named
from fperr.parquet import content_of, parquet
from fperr.storage import SEAL, is_sealed, is_whole
from fperr.theory.scenarios import SCENARIOS

_UNSEALED = 6  # the last schema version without a digest
_REMEDY = "measure again, or use the fperr that wrote it"


def to_bytes(
    frame: pd.DataFrame, provenance: Mapping[str, Any], version: int, stamp: str = SEAL
) -> bytes:
    """Frame and provenance as the bytes of a Parquet file, which must be sealed next.

    Args:
        frame: Rows of the report.
        provenance: Provenance by network.
        version: Schema version.
        stamp: Text that the digest will replace.
    """
    content = {"schema_version": version, "seal": stamp, "provenance": provenance}
    return parquet(pa.Table.from_pandas(frame, preserve_index=False), content)


def from_bytes(
    content: bytes, source: str | Path, version: int, columns: Mapping[str, str]
) -> tuple[pd.DataFrame, dict[str, Any], bool]:
    """Read the bytes that `to_bytes` made and `sealed` completed.

    Args:
        content: Content of the file.
        source: Name of the file, for messages.
        version: Schema version; the last version without a digest can be read, too.
        columns: pandas dtypes of the columns, by name and in order.

    Returns:
        Frame and provenance, and whether a digest has confirmed them.

    Raises:
        ValueError: the file is no report, damaged, of another schema version, or holds values that
            no measurement has.
    """
    if is_sealed(content) and not is_whole(content):
        raise ValueError(
            f"{source} is damaged or was changed: its digest is not that of its content. Start the "
            "measurement again in its folder (rows that are whole are used), or take a copy"
        )
    try:
        table = pq.read_table(io.BytesIO(content))
        metadata = content_of(table)
    except (pa.ArrowException, OSError, ValueError) as fault:
        raise ValueError(
            f"{source} cannot be read as Parquet ({str(fault).splitlines()[0]}): expected a "
            "measurements.parquet that fperr wrote; it may be cut off, measure again"
        ) from fault
    if not metadata:
        raise ValueError(
            f"{source} is a Parquet file, but not one that fperr wrote: expected a "
            "measurements.parquet, as `fperr measure` or Report.to_parquet writes it"
        )
    file_version = metadata.get("schema_version")
    if file_version not in (version, _UNSEALED):
        raise ValueError(
            f"{source} has schema version {file_version}, this fperr reads {version}: {_REMEDY}"
        )
    if file_version > _UNSEALED and not is_sealed(content):
        raise ValueError(f"{source} has lost its digest: it is damaged or forged, {_REMEDY}")
    if table.column_names != list(columns):
        raise ValueError(
            f"{source} does not have the columns of schema version {file_version}: missing "
            f"{sorted(columns.keys() - set(table.column_names))}, unknown "
            f"{sorted(set(table.column_names) - columns.keys())}, or in another order: {_REMEDY}"
        )
    try:
        frame = table.to_pandas().astype(dict(columns))
    except (TypeError, ValueError, pa.ArrowException) as fault:
        raise ValueError(f"{source} holds values of other types ({fault}): {_REMEDY}") from fault
    provenance = metadata.get("provenance")
    problem = _problem(frame, provenance)
    if problem is not None:
        raise ValueError(f"{source} is no measurement that fperr made: {problem}; {_REMEDY}")
    assert isinstance(provenance, dict)
    return frame, provenance, is_sealed(content)


def _measured_formats(details: Any) -> list[str]:
    """The formats that a provenance names: a user may have measured in one of theirs."""
    settings = details.get("settings") if isinstance(details, dict) else None
    names = settings.get("formats", []) if isinstance(settings, dict) else []
    return [name for name in names if isinstance(name, str)]


def _problem(frame: pd.DataFrame, provenance: object) -> str | None:
    """The first problem of the values, in words; None if every view of a report can show them."""
    if not len(frame):
        return "expected at least one row, got none"
    if not isinstance(provenance, dict):
        return f"expected a provenance by network, got {type(provenance).__name__}"
    networks = set(frame["network"].dropna())
    if frame["network"].isna().any() or not networks <= provenance.keys():
        return f"expected rows of the networks {sorted(provenance)}, got {sorted(networks)}"
    for network, details in provenance.items():
        for path in (("settings", "digits"), ("model", "classes"), ("reference", "engine")):
            group = details.get(path[0]) if isinstance(details, dict) else None
            if not isinstance(group, dict) or path[1] not in group:
                return f"expected {'.'.join(path)} in the provenance of {network}, got none"
        if not isinstance(details.get("interrupted"), bool):
            return f"expected interrupted in the provenance of {network}, got no yes or no"
    own = {name for details in provenance.values() for name in _measured_formats(details)}
    for column, allowed in (("scenario", set(SCENARIOS)), ("format", set(FORMATS) | own)):
        unknown = set(frame[column].fillna("nothing")) - allowed
        if unknown:
            return f"expected a {column} out of {', '.join(allowed)}, got {sorted(unknown)}"
    try:
        for loss in frame["loss"].unique():
            loss_named(loss)
    except (TypeError, ValueError, AttributeError) as fault:
        return str(fault)
    return None
