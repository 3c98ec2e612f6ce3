"""Collects a campaign: one table of each kind, a page for each model, a leaderboard, and figures.

Parts are read one after the other, and the rows of one model are held at a time.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from fperr import storage
from fperr.campaign import leaderboard
from fperr.campaign.figure_views import draw_figures
from fperr.campaign.outcomes import ModelOutcomes, attributions_of, outcomes_of
from fperr.campaign.spec import Spec
from fperr.campaign.view import View
from fperr.errors import StorageError
from fperr.report.html import attribution_page

_ROWS = 200_000  # of a table that are held before they are written


@dataclass(frozen=True, slots=True)
class Collected:
    """What was collected.

    Attributes:
        leaderboard: A line a model.
        sentences: Sentence of each attribution, by model.
        rows: Number of rows of each table, by kind: `attack`, `measure`.
        missing: Number of cells without a part.
        remarks: What a reader should know besides.
        files: Files that were written.
    """

    leaderboard: pd.DataFrame
    sentences: Mapping[str, str]
    rows: Mapping[str, int]
    missing: int
    remarks: tuple[str, ...]
    files: tuple[Path, ...]


def collect(view: View, out: Path, advance: Callable[[str], object] = lambda _: None) -> Collected:
    """Collect what is finished of a campaign.

    Args:
        view: The campaign.
        out: Folder to write to.
        advance: Called with the name of each model when it is done.

    Raises:
        FperrError: Parts of a model were made with different weights.
        ValueError, StorageError: The folder cannot be written to.
    """
    storage.prepare(out)
    storage.prepare(out / "models")
    lines: list[dict[str, Any]] = []
    sentences: dict[str, str] = {}
    pages: dict[str, str] = {}
    files: list[Path] = []
    machines: set[str] = set()
    missing = 0
    with _Tables(out) as tables:
        for model in view.plan.models:
            name = model.spec.name
            outcomes = outcomes_of(view, model)
            tables.add(outcomes.tables)
            outcomes.tables.clear()
            missing += outcomes.missing
            machines |= outcomes.machines
            line, sentence, page = _of_model(outcomes, view.plan.spec)
            lines.append(line)
            if sentence is not None:
                sentences[name] = sentence
            if page is not None:
                path = out / "models" / f"{storage.file_name(name)}.html"
                storage.write(path, page.encode())
                files.append(path)
                pages[name] = f"models/{path.name}"
            advance(name)
    frame = leaderboard.frame_of(lines, view.plan.absent)
    title = f"{view.plan.spec.name}: {len(lines)} of {len(view.plan.spec.models)} models"
    written = leaderboard.contents(frame, title, pages, out / "leaderboard")
    for path, content in written.items():
        storage.write(path, content)
    drawn, undrawn = draw_figures(view, out / "figures")
    remarks = (*_remarks(machines, missing, len(view.plan.cells)), *undrawn)
    rows = dict(tables.rows)
    return Collected(
        frame, sentences, rows, missing, remarks, (*written, *tables.paths, *files, *drawn)
    )


def lazy_frame(folder: Path, kind: str) -> ds.Dataset:
    """The collected rows of a kind, read where they are asked for.

    Args:
        folder: Folder that `collect` wrote to.
        kind: `"attack"` or `"measure"`.

    Returns:
        PyArrow's dataset: `to_batches()`, `count_rows()`, `to_table(columns=..., filter=...)`; and
        `dask.dataframe.read_parquet` reads the same file.

    Raises:
        ValueError: Nothing of that kind was collected there.
    """
    path = folder / f"{kind}.parquet"
    if not path.is_file():
        raise ValueError(f"{path} is missing: `fperr campaign collect` writes it")
    return ds.dataset(path, format="parquet")


def _of_model(outcomes: ModelOutcomes, spec: Spec) -> tuple[dict[str, Any], str | None, str | None]:
    """The line of a model, the sentence of its attributions, and its page."""
    made = list(attributions_of(outcomes, spec.jobs))
    report = outcomes.report
    line = leaderboard.line_of(outcomes, report, made)
    sections = {a.kind: a.section for _, a in made if a is not None}
    sentence = " ".join(a.sentence for _, a in made if a is not None) or None
    name = outcomes.model.spec.name
    if report is not None:
        is_one = len(sections) == 1
        titled = {name if is_one else f"{name}, {kind}": s for kind, s in sections.items()}
        return line, sentence, report.to_html(attributions=titled)
    if sections:
        return line, sentence, attribution_page(next(iter(sections.values())))
    return line, sentence, None


def _remarks(machines: set[str], missing: int, cells: int) -> tuple[str, ...]:
    remarks = []
    if missing:
        remarks.append(
            f"{missing} of {cells} cells are missing: `fperr campaign status` says which, and "
            "`resume` runs them"
        )
    if len(machines) > 1:
        remarks.append(
            f"Cells ran on different kinds of machines ({'; '.join(sorted(machines))}): last "
            "digits may differ between them"
        )
    return tuple(remarks)


@dataclass(slots=True)
class _Tables:
    """The tables that are written as parts are read; none is left half-written."""

    out: Path
    rows: dict[str, int] = field(default_factory=dict)
    _writers: dict[str, pq.ParquetWriter] = field(default_factory=dict)
    _held: dict[str, list[pa.Table]] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.out / f"{kind}.parquet" for kind in self.rows)

    def __enter__(self) -> "_Tables":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for name in list(self._held):
            if kind is None:
                self._flush(name)
        for name, writer in self._writers.items():
            writer.close()
            if kind is None:
                self._partial(name).replace(self.out / f"{name}.parquet")
            else:
                self._partial(name).unlink(missing_ok=True)

    def add(self, tables: Iterable[tuple[str, pa.Table]]) -> None:
        for kind, table in tables:
            self._held.setdefault(kind, []).append(table)
            self.rows[kind] = self.rows.get(kind, 0) + len(table)
            if sum(map(len, self._held[kind])) >= _ROWS:
                self._flush(kind)

    def _flush(self, kind: str) -> None:
        held = self._held.pop(kind, [])
        if not held:
            return
        joined = pa.concat_tables(held, promote_options="permissive")
        try:
            if kind not in self._writers:
                self._writers[kind] = pq.ParquetWriter(self._partial(kind), joined.schema)
            self._writers[kind].write_table(joined.cast(self._writers[kind].schema))
        except OSError as fault:
            raise StorageError(
                f"{self.out / kind}.parquet could not be written ({fault}): make room, and "
                "collect again"
            ) from fault

    def _partial(self, kind: str) -> Path:
        return self.out / f".{kind}.parquet.partial"
