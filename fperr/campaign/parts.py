"""A part: the finished rows of a cell as Parquet, with a header of JSON and its digest."""

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fperr.parquet import content_of, parquet
from fperr.storage import SEAL, is_whole, sealed


@dataclass(frozen=True, slots=True)
class Part:
    """A part that was read.

    Attributes:
        table: Rows of the cell.
        header: `identity` (what the results depend on), `made` (who made them, when and how), and
            what the arm adds, as `provenance`.
    """

    table: pa.Table
    header: dict[str, Any]


def file_name(cell: str) -> str:
    """The name of a cell's file."""
    return f"{cell}.parquet"


def to_bytes(cell: str, table: pa.Table, header: dict[str, Any]) -> bytes:
    """The sealed content of a part.

    Args:
        cell: Digest of the cell's identity.
        table: Rows.
        header: Header, ready for JSON.
    """
    return sealed(parquet(table, {"seal": SEAL + _stamp(cell), **header}))


def is_part(content: bytes, cell: str) -> bool:
    """Whether the content is that of the cell's part, every byte as it was written."""
    return is_whole(content) and _stamp(cell).encode() in content


def read_part(content: bytes, cell: str) -> Part | None:
    """The part of a cell; None if the content is damaged, or of another cell."""
    if not is_part(content, cell):
        return None
    table = pq.read_table(io.BytesIO(content))
    return Part(table.replace_schema_metadata(None), content_of(table))


def _stamp(cell: str) -> str:
    return f" cell {cell};"
