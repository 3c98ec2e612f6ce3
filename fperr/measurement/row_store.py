"""Rows of a measurement: in memory, or on disk, where a second run goes on from them."""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from fperr import checks
from fperr.errors import StorageError
from fperr.exact.entry import ENGINES
from fperr.measurement.arguments import MeasureRequest
from fperr.measurement.rows import Row
from fperr.measurement.run import MeasurementRun
from fperr.report.frame import Report
from fperr.run_folder import RunFolder, opened
from fperr.vocabulary import EngineChoice

ABOUT = "measurement.json"
_REMEDY = "give another folder (or begin anew: --overwrite of the command)"
_WRITING_SHARE = 0.1  # of the time, at most, an unfinished batch is written again and again


def folder_of(out: str | Path | None) -> AbstractContextManager[RunFolder | None]:
    """The run folder, locked; None where no folder is asked for."""
    if out is None:
        return nullcontext()
    return opened(checks.path("out", out), ABOUT, remedy=_REMEDY)


def engine_of(run: RunFolder | None, engine: EngineChoice) -> EngineChoice:
    """The engine to ask for: where timings choose it, what they chose in the first run."""
    stored = None if run is None or run.settings is None else run.settings.get("reference")
    if engine != "auto" or not isinstance(stored, dict) or stored.get("asked") != "auto":
        return engine
    return checks.choice("engine", stored["engine"], ENGINES)


def as_first_chosen(
    job: MeasureRequest, run: RunFolder | None, engine: EngineChoice
) -> MeasureRequest:
    """The job with the reason for which the first run chose the engine."""
    if run is None or run.settings is None or engine_of(run, engine) == engine:
        return job
    return replace(job, engine_choice=str(run.settings["reference"]["chosen_because"]))


class RowsInMemory:
    """Rows in memory."""

    def __init__(self, lab: MeasurementRun) -> None:
        self._lab = lab
        self._rows: list[Row] = []
        self.finished: frozenset[int] = frozenset()
        self.samples_read = 0

    def add(self, rows: Sequence[Row]) -> None:
        """The rows of the next sample."""
        self._rows.extend({"network": self._lab.job.name, **row} for row in rows)

    def flush(self) -> None:
        """Nothing is on disk."""

    def report(self, *, interrupted: bool) -> Report:
        """All that are finished."""
        return Report.from_rows(self._rows, self._lab.provenance(interrupted=interrupted))


class RowsOnDisk(RowsInMemory):
    """Rows in a run folder: a file for each batch, and one for what is finished of a batch.

    A batch that was cut off is run again as a whole, because the bits of a format's run depend on
    the batch; its finished rows can be read until then.

    Args:
        lab: the measurement.
        run: the folder.
        reference: the engine that was asked for.
    """

    def __init__(self, lab: MeasurementRun, run: RunFolder, reference: str) -> None:
        super().__init__(lab)
        self._run = run
        self._token = secrets.token_hex(8)
        self._about = lab.provenance(interrupted=True)[lab.job.name]
        run.begin(_settings(self._about, lab.job, reference))
        self._batches = {batch.start: batch for batch in lab.job.batches()}
        self._reports = dict(self._finished())
        self.finished = frozenset(self._reports)
        self.samples_read = sum(_samples(report) for report in self._reports.values())
        self._earlier = dict(self._unfinished())
        self._written_at, self._writing = time.monotonic(), 0.0

    def add(self, rows: Sequence[Row]) -> None:
        """The rows of the next sample; on disk at once, or after a few where writing is slow.

        Raises:
            StorageError: they cannot be written.
        """
        super().add(rows)
        batch = self._batch_of(rows)
        is_last = rows[0]["sample"] == batch.stop - 1
        if is_last or time.monotonic() - self._written_at >= self._writing / _WRITING_SHARE:
            self._write(batch, is_finished=is_last)

    def flush(self) -> None:
        """Write what is finished of a batch."""
        if self._rows:
            self._write(self._batch_of(self._rows), is_finished=False)

    def report(self, *, interrupted: bool) -> Report:
        """All that are finished; of a measurement that was not interrupted, as they lie on disk.

        Raises:
            StorageError: something of them has gone.
        """
        if interrupted:
            reports = self._earlier | self._reports
            if self._rows:
                start = self._batch_of(self._rows).start
                reports[start] = _larger(self._current(), reports.get(start))
        else:
            self._run.check()
            reports = dict(self._finished())
            missing = sorted(self._batches.keys() - reports.keys())
            if missing:
                raise StorageError(
                    f"{self._run.path}: the batches that begin with samples {missing} are gone or "
                    "damaged. Start the same again: they are computed again"
                )
        ordered = [reports[start] for start in sorted(reports)]
        frames = [report.frame for report in ordered]
        about = {
            **self._about,
            "interrupted": interrupted,
            "reference": {
                **self._about["reference"],
                "engine": _engines(ordered) or self._about["reference"]["engine"],
            },
            "samples_read_back": self.samples_read,
        }
        provenance = {self._lab.job.name: about}
        if not frames:
            return Report.from_rows([], provenance)
        return Report(pd.concat(frames, ignore_index=True), provenance)

    def _finished(self) -> Iterator[tuple[int, Report]]:
        for start, batch in self._batches.items():
            report = self._piece(_name(batch, is_finished=True))
            if report is not None and _samples(report) == batch.stop - batch.start:
                yield start, report

    def _unfinished(self) -> Iterator[tuple[int, Report]]:
        for start in self._batches.keys() - self.finished:
            report = self._piece(_name(self._batches[start], is_finished=False))
            if report is not None:
                yield start, report

    def _piece(self, name: str) -> Report | None:
        content = self._run.piece(name)
        if content is None:
            return None
        try:
            return Report.from_bytes(content, self._run.path / name)
        except ValueError:
            self._run.distrust(name)
            return None

    def _batch_of(self, rows: Sequence[Row]) -> slice:
        sample = rows[0]["sample"]
        assert isinstance(sample, int)
        return self._batches[max(start for start in self._batches if start <= sample)]

    def _current(self) -> Report:
        reference = {**self._about["reference"], "engine": self._lab.reference.engine.name}
        about = {**self._about, "reference": reference, "run": self._token}
        return Report.from_rows(self._rows, {self._lab.job.name: about})

    def _write(self, batch: slice, *, is_finished: bool) -> None:
        started = time.monotonic()
        report = self._current()
        if is_finished or _samples(report) > _samples(self._earlier.get(batch.start)):
            name = _name(batch, is_finished=is_finished)
            self._run.keep(name, report.to_bytes(self._run.stamp(name)))
        if is_finished:
            self._run.drop(_name(batch, is_finished=False))
            self._earlier.pop(batch.start, None)
            self._reports[batch.start] = report
            self._rows = []
        self._written_at = time.monotonic()
        self._writing = self._written_at - started


def _name(batch: slice, *, is_finished: bool) -> str:
    return f"{batch.start:07d}{'' if is_finished else '-unfinished'}.parquet"


def _samples(report: Report | None) -> int:
    return 0 if report is None else int(report.frame["sample"].nunique())


def _larger(report: Report, other: Report | None) -> Report:
    return report if other is None or _samples(report) >= _samples(other) else other


def _engines(reports: Sequence[Report]) -> str:
    """What the exact engine of each run says of itself: it counts over the samples of that run."""
    last: dict[str, tuple[str, int]] = {}
    for report in reports:
        about = next(iter(report.provenance.values()))
        samples = last.get(about["run"], ("", 0))[1] + _samples(report)
        last[about["run"]] = about["reference"]["engine"], samples
    names = {name for name, _ in last.values()}
    if len(names) < 2:
        return "".join(names)
    return "; ".join(f"{name} (in a run of {count} samples)" for name, count in last.values())


def _settings(about: dict[str, Any], job: MeasureRequest, reference: str) -> dict[str, Any]:
    """What a measurement must have in common with one that goes on from its rows."""
    groups = {group: about[group] for group in ("inputs", "model", "versions", "device")}
    engine = {
        "asked": reference,
        "engine": job.engine,
        "chosen_because": job.engine_choice,
    }
    return {"network": job.name, **about["settings"], **groups, "reference": engine}


def rows_of(lab: MeasurementRun, run: RunFolder | None, reference: str) -> RowsInMemory:
    """Rows in memory, or in the folder."""
    return RowsInMemory(lab) if run is None else RowsOnDisk(lab, run, reference)
