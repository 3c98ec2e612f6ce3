"""Tables as Parquet, with a content of JSON beside them in the same file."""

import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_KEY = b"fperr"


def parquet(table: pa.Table, content: Mapping[str, Any]) -> bytes:
    """A table as the bytes of a Parquet file, with `content` as JSON in its metadata."""
    metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(content).encode()}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return sink.getvalue()


def content_of(table: pa.Table) -> dict[str, Any]:
    """The content that `parquet` put into the metadata; empty if there is none."""
    content = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    return content if isinstance(content, dict) else {}
