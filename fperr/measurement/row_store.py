"""Stores the rows of a measurement: in memory, or on disk, where a later run continues them."""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from fperr import checks
from fperr.errors import StorageError
from fperr.measurement.arguments import MeasureRequest
from fperr.measurement.provenance import merged_notes
from fperr.measurement.rows import Row
from fperr.measurement.run import MeasurementRun
from fperr.report.frame import Report
from fperr.run_folder import RunFolder, opened

SETTINGS_FILE = "measurement.json"
_REMEDY = "give another folder (or begin anew: --overwrite of the command)"
# an unfinished batch is written again after each sample, but only during this share of the time
_WRITING_SHARE = 0.1


def folder_of(out: str | Path | None) -> AbstractContextManager[RunFolder | None]:
    """The run folder, locked; None where no folder is asked for."""
    if out is None:
        return nullcontext()
    return opened(checks.path("out", out), SETTINGS_FILE, remedy=_REMEDY)


class RowsInMemory:
    """Rows in memory.

    Args:
        measurement: The run that makes the rows.

    Attributes:
        finished: First samples of the batches that were read, and are not measured again.
        samples_read: Number of samples that were read.
    """

    def __init__(self, measurement: MeasurementRun) -> None:
        self._measurement = measurement
        self._rows: list[Row] = []
        self.finished: frozenset[int] = frozenset()
        self.samples_read = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Add the rows of the next sample."""
        self._rows.extend({"network": self._measurement.request.name, **row} for row in rows)

    def flush(self) -> None:
        """Write finished rows to disk; rows in memory are never written."""

    def report(self, *, interrupted: bool) -> Report:
        """The report of all finished rows."""
        return Report.from_rows(self._rows, self._measurement.provenance(interrupted=interrupted))


class RowsOnDisk(RowsInMemory):
    """Rows in a run folder: a file for each finished batch, and a file for an unfinished one.

    A batch that was cut off is run again from its first sample, because the bits of a format's run
    depend on the batch; until then, its finished rows can be read.

    Args:
        measurement: The run that makes the rows.
        folder: The run folder.
    """

    def __init__(self, measurement: MeasurementRun, folder: RunFolder) -> None:
        super().__init__(measurement)
        self._folder = folder
        self._token = secrets.token_hex(8)  # tells the runs apart that wrote to this folder
        self._details = measurement.provenance(interrupted=True)[measurement.request.name]
        folder.begin(_settings(self._details, measurement.request))
        # the batches, and later their reports, by first sample
        self._batches = {batch.start: batch for batch in measurement.request.batches()}
        self._reports = dict(self._finished())
        self.finished = frozenset(self._reports)
        self.samples_read = sum(_samples(report) for report in self._reports.values())
        self._earlier = dict(self._unfinished())
        self._written_at, self._writing = time.monotonic(), 0.0

    def add(self, rows: Sequence[Row]) -> None:
        """Add the rows of the next sample; write them at once, or later if writing is slow.

        Raises:
            StorageError: they cannot be written.
        """
        super().add(rows)
        batch = self._batch_of(rows)
        is_last = rows[0]["sample"] == batch.stop - 1
        if is_last or time.monotonic() - self._written_at >= self._writing / _WRITING_SHARE:
            # samples that were given up for lack of time are computed when the run goes on
            is_finished = is_last and not self._measurement.reference.time_is_up
            self._write(batch, is_finished=is_finished)

    def flush(self) -> None:
        """Write the finished rows of an unfinished batch."""
        if self._rows:
            self._write(self._batch_of(self._rows), is_finished=False)

    def report(self, *, interrupted: bool) -> Report:
        """The report of all finished rows; if not interrupted, as they are read from disk.

        Raises:
            StorageError: a batch is missing or damaged on disk.
        """
        if interrupted:
            reports = self._earlier | self._reports
            if self._rows:
                start = self._batch_of(self._rows).start
                reports[start] = _larger(self._current(), reports.get(start))
        else:
            self._folder.check()
            reports = dict(self._finished())
            missing = sorted(self._batches.keys() - reports.keys())
            if missing:
                raise StorageError(
                    f"{self._folder.path}: the batches that begin with samples {missing} are "
                    "gone or damaged. Start the same again: they are computed again"
                )
        ordered = [reports[start] for start in sorted(reports)]
        frames = [report.frame for report in ordered]
        details = {
            **self._details,
            "interrupted": interrupted,
            "time_is_up": self._measurement.reference.time_is_up,
            "reference": {
                **self._details["reference"],
                "engine": _engines(ordered) or self._details["reference"]["engine"],
            },
            "emulation": merged_notes(
                self._measurement.request.formats,
                [next(iter(r.provenance.values())).get("emulation", {}) for r in ordered],
            ),
            "samples_read_back": self.samples_read,
        }
        provenance = {self._measurement.request.name: details}
        if not frames:
            return Report.from_rows([], provenance)
        return Report(pd.concat(frames, ignore_index=True), provenance)

    def _finished(self) -> Iterator[tuple[int, Report]]:
        """The first sample and the report of each finished batch on disk."""
        for start, batch in self._batches.items():
            report = self._piece(_name(batch, is_finished=True))
            if report is not None and _samples(report) == batch.stop - batch.start:
                yield start, report

    def _unfinished(self) -> Iterator[tuple[int, Report]]:
        """The first sample and the report of each unfinished batch on disk."""
        for start in self._batches.keys() - self.finished:
            report = self._piece(_name(self._batches[start], is_finished=False))
            if report is not None:
                yield start, report

    def _piece(self, name: str) -> Report | None:
        """The report in a file of the folder; None where the file is missing or damaged."""
        content = self._folder.piece(name)
        if content is None:
            return None
        try:
            return Report.from_bytes(content, self._folder.path / name)
        except ValueError:
            self._folder.distrust(name)
            return None

    def _batch_of(self, rows: Sequence[Row]) -> slice:
        """The batch that the first of the rows belongs to."""
        sample = rows[0]["sample"]
        assert isinstance(sample, int)
        return self._batches[max(start for start in self._batches if start <= sample)]

    def _current(self) -> Report:
        """The report of the finished rows of the current batch."""
        name = self._measurement.reference.description
        reference = {**self._details["reference"], "engine": name}
        details = {
            **self._details,
            "reference": reference,
            "emulation": self._measurement.emulation_notes,
            "run": self._token,
        }
        return Report.from_rows(self._rows, {self._measurement.request.name: details})

    def _write(self, batch: slice, *, is_finished: bool) -> None:
        """Write the rows of the current batch, unless more of them are on disk already."""
        started = time.monotonic()
        report = self._current()
        if is_finished or _samples(report) > _samples(self._earlier.get(batch.start)):
            name = _name(batch, is_finished=is_finished)
            self._folder.keep(name, report.to_bytes(self._folder.stamp(name)))
        if is_finished:
            self._folder.drop(_name(batch, is_finished=False))
            self._earlier.pop(batch.start, None)
            self._reports[batch.start] = report
            self._rows = []
        self._written_at = time.monotonic()
        self._writing = self._written_at - started


def _name(batch: slice, *, is_finished: bool) -> str:
    """The name of the file of a batch."""
    return f"{batch.start:07d}{'' if is_finished else '-unfinished'}.parquet"


def _samples(report: Report | None) -> int:
    """The number of samples in a report."""
    return 0 if report is None else int(report.frame["sample"].nunique())


def _larger(report: Report, other: Report | None) -> Report:
    """The report with more samples; the first of two equal ones."""
    return report if other is None or _samples(report) >= _samples(other) else other


def _engines(reports: Sequence[Report]) -> str:
    """The names of the engines of all runs; each name contains counts over its run's samples."""
    last: dict[str, tuple[str, int]] = {}
    for report in reports:
        details = next(iter(report.provenance.values()))
        samples = last.get(details["run"], ("", 0))[1] + _samples(report)
        last[details["run"]] = details["reference"]["engine"], samples
    names = {name for name, _ in last.values()}
    if len(names) < 2:
        return "".join(names)
    return "; ".join(f"{name} (in a run of {count} samples)" for name, count in last.values())


def _settings(details: dict[str, Any], request: MeasureRequest) -> dict[str, Any]:
    """The settings that a measurement and its continuation must share.

    Args:
        details: Provenance of the network.
        request: Checked request.
    """
    groups = {group: details[group] for group in ("inputs", "model", "versions", "device")}
    reference = {"engines": list(request.engines), "chosen_because": request.engine_choice}
    return {"network": request.name, **details["settings"], **groups, "reference": reference}


def rows_of(measurement: MeasurementRun, folder: RunFolder | None) -> RowsInMemory:
    """The store of a measurement's rows: in memory if there is no folder.

    Args:
        measurement: The run that makes the rows.
        folder: The run folder, or None.
    """
    return RowsInMemory(measurement) if folder is None else RowsOnDisk(measurement, folder)
