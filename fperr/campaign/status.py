"""How far a campaign is: cells, executions, cost so far, and computing that is left."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import mean

import pandas as pd

from fperr.campaign.cells import size_name
from fperr.campaign.view import View


@dataclass(frozen=True, slots=True)
class Status:
    """How far a campaign is.

    Attributes:
        table: A row for each model: columns model, cells, finished, failed, missing, seconds.
        executions: Number of executions of its cells, in all runs.
        cut_off: Number of executions that neither finished nor failed: a death cut them off, or
            they run now.
        seconds: Seconds of computing of the finished cells.
        seconds_left: Seconds of computing that are left, by cells of the same kind; None if there
            are none to go by.
        failures: Words and the error of each recorded failure.
        absent: Models whose files are missing -> why.
        foreign: Number of parts of no cell of the spec.
    """

    table: pd.DataFrame
    executions: int
    cut_off: int
    seconds: float
    seconds_left: float | None
    failures: tuple[tuple[str, str], ...]
    absent: dict[str, str]
    foreign: int

    @property
    def cells(self) -> int:
        """Number of cells."""
        return int(self.table["cells"].sum())

    @property
    def finished(self) -> int:
        """Number of finished cells."""
        return int(self.table["finished"].sum())


def status_of(view: View) -> Status:
    """Read all parts, and count.

    Warns:
        DamagedFileWarning: A part is damaged: its cell is missing.
    """
    cells = view.plan.cells
    failures = view.folder.failures(cells)
    begun = view.folder.executions()
    seconds: dict[str, float] = {}
    for digest, cell in cells.items():
        part = view.part(cell)
        if part is not None:
            seconds[digest] = float(part.header["made"]["seconds"])
    by_kind: dict[str, list[float]] = defaultdict(list)
    for digest, spent in seconds.items():
        by_kind[size_name(cells[digest].model, cells[digest].arm)].append(spent)
    left = [cell for digest, cell in cells.items() if digest not in seconds]
    means = {kind: mean(spent) for kind, spent in by_kind.items()}
    # kinds of which nothing is finished are taken for the mean of the others
    usual = mean(means.values()) if means else None
    rows = [
        {
            "model": model.spec.name,
            "cells": len(own),
            "finished": sum(digest in seconds for digest in own),
            "failed": sum(digest in failures and digest not in seconds for digest in own),
            "missing": sum(digest not in seconds and digest not in failures for digest in own),
            "seconds": sum(seconds.get(digest, 0.0) for digest in own),
        }
        for model in view.plan.models
        for own in [[d for d, cell in cells.items() if cell.model.name == model.spec.name]]
    ]
    of_cells = sum(begun[digest] for digest in cells)
    ended = len(seconds) + sum(int(r["executions"]) for r in failures.values())
    return Status(
        pd.DataFrame(rows),
        of_cells,
        max(0, of_cells - ended),
        sum(seconds.values()),
        None
        if usual is None
        else sum(means.get(size_name(cell.model, cell.arm), usual) for cell in left),
        tuple((r["words"], r["error"]) for d, r in failures.items() if d not in seconds),
        dict(view.plan.absent),
        view.folder.foreign(cells),
    )
