"""The work of `fperr measure`."""

import contextlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from fperr.cli.options import folder_name
from fperr.cli.work.subjects import (
    Subject,
    check_folder,
    subject_of,
)
from fperr.cli.work.terminal import (
    print_table,
    print_verdict,
    shows_progress,
    stopped_by_signals,
)
from fperr.errors import FperrError, StorageError
from fperr.measurement import estimate, measure
from fperr.reasons import UnmeasuredWarning, is_any_measured, unmeasured_sentence
from fperr.report.answer import answer, verdicts
from fperr.report.frame import Report
from fperr.report.style import picture
from fperr.report.summary import headline, overview
from fperr.report.verdict import Thresholds
from fperr.run_folder import RunFolder, opened
from fperr.storage import file_name

_ABOUT, _ROWS = "command.json", "rows"
_FILES = (_ROWS, "measurements.parquet", "relative_error.png", "report.html")
_REMEDY = "give another folder with --out, or begin anew with --overwrite"
_INTERRUPTED, _BAD_VERDICT = 130, 3
# value of --fail-on: states of a verdict that are as bad
_BAD_STATES = {
    "untrustworthy": ("do not trust",),
    "unclear": ("do not trust", "cannot tell", "not measured"),
}


def measure_command(
    *,
    networks: list[str],
    dataset: str | None,
    checkpoint: Path | None,
    logits: str | None,
    device: str,
    n: int | None,
    losses: str,
    formats: str,
    scenarios: str,
    loss_scale: float,
    digits: int | None,
    engine: str,
    max_seconds: float | None,
    certify: bool,
    accept_probabilities: bool,
    dry_run: bool,
    out: Path | None,
    overwrite: bool,
    fail_on: str | None,
    quiet: bool,
) -> None:
    """Measure the floating-point error of the gradients of networks on real images."""
    if fail_on is not None and fail_on not in _BAD_STATES:
        raise ValueError(f"--fail-on must be {' or '.join(_BAD_STATES)}, got {fail_on!r}: give one")
    subjects = [subject_of(name, checkpoint, logits, dataset, n, device) for name in networks]
    subjects = _named_apart(subjects, networks)
    assigned = None if scenarios == "observed" else scenarios
    request: dict[str, Any] = {
        "losses": _split(losses),
        "formats": _split(formats),
        "scenarios": assigned if assigned in (None, "all") else _split(assigned),
        "loss_scale": loss_scale,
        "digits": digits,
        "engine": engine,
        "certify": certify,
        "accept_probabilities": accept_probabilities,
    }
    limits = {"max_seconds": max_seconds}  # may be another one when the command goes on
    if dry_run:
        for subject in subjects:
            model, x, y = subject.arguments(assigned)
            typer.echo(estimate(model, x, y, **subject.options, **request).describe())
        return
    folder = out or Path("out") / folder_name(subjects[0].name)
    check_folder(folder, overwrite=True)
    with opened(folder, _ABOUT, remedy=_REMEDY, overwrite=_FILES if overwrite else None) as run:
        report = _measured(subjects, assigned, request, limits, run, quiet=quiet)
        _write(report, run)
    _show(report)
    is_measured = _say_what_is_missing(report)
    if _is_interrupted(report, subjects):
        typer.echo(f"fperr: interrupted; the same command goes on from {folder}", err=True)
        raise typer.Exit(_INTERRUPTED)
    if any(part["time_is_up"] for part in report.provenance.values()):
        typer.echo(
            f"fperr: balls were left out after {max_seconds:g} s; the same command computes them, "
            f"and goes on from {folder}",
            err=True,
        )
    if not is_measured:
        raise typer.Exit(1)
    if fail_on is not None and _states(report) & set(_BAD_STATES[fail_on]):
        typer.echo(f"fperr: a verdict is as bad as --fail-on {fail_on} says", err=True)
        raise typer.Exit(_BAD_VERDICT)


def _measured(
    subjects: list[Subject],
    assigned: str | None,
    request: dict[str, Any],
    limits: dict[str, Any],
    run: RunFolder,
    *,
    quiet: bool,
) -> Report:
    """The reports of all networks in one; what is finished is written if a fault ends it."""
    run.begin({"networks": [s.name for s in subjects], "scenarios": assigned, **request})
    if (run.path / _ROWS).is_symlink():
        raise ValueError(
            f"{run.path / _ROWS} is a symbolic link, which is not followed: remove it, or {_REMEDY}"
        )
    reports: list[Report] = []
    try:
        with stopped_by_signals():
            for number, subject in enumerate(subjects):
                folder = run.path / _ROWS / f"{number:02d}-{file_name(subject.name)}"
                model, x, y = subject.arguments(assigned)
                with warnings.catch_warnings():  # said at the end, for all networks
                    warnings.simplefilter("ignore", UnmeasuredWarning)
                    report = measure(
                        model,
                        x,
                        y,
                        progress=shows_progress(quiet=quiet),
                        out=folder,
                        **subject.options,
                        **request,
                        **limits,
                    )
                reports += [report] if len(report.frame) else []
                if _is_cut_off(report.provenance[subject.name]):
                    break
    except KeyboardInterrupt:  # outside the samples: what came before is finished
        pass
    except (Exception, SystemExit) as fault:
        partial = getattr(fault, "report", None)
        reports += [partial] if isinstance(partial, Report) else []
        if reports:
            with contextlib.suppress(StorageError):  # the rows are on disk; the fault says more
                _write(Report.merged(reports), run)
        _forget_if_empty(run)
        raise
    if not reports:
        _forget_if_empty(run)
        raise FperrError("interrupted before the first sample was finished: nothing to report")
    return Report.merged(reports)


def _forget_if_empty(run: RunFolder) -> None:
    """Leave no folder where an argument was wrong, or nothing was begun."""
    rows = run.path / _ROWS
    with contextlib.suppress(OSError):  # there are rows in it
        rows.rmdir()
    if not rows.exists() and not (run.path / _FILES[1]).exists():
        run.clear(_FILES)


def _is_interrupted(report: Report, subjects: list[Subject]) -> bool:
    provenance = report.provenance.values()
    return len(provenance) < len(subjects) or any(map(_is_cut_off, provenance))


def _is_cut_off(provenance: dict[str, Any]) -> bool:
    """Whether samples are missing; not where only balls were left out for lack of time."""
    return provenance["interrupted"] and not provenance["time_is_up"]


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def _named_apart(subjects: list[Subject], networks: list[str]) -> list[Subject]:
    """Name factories of the same name by their modules, too.

    Raises:
        ValueError: A network is named twice.
    """
    names = [subject.name for subject in subjects]
    if len(set(names)) == len(names):
        return subjects
    if len(set(networks)) < len(networks):
        raise ValueError(f"networks must be different, got {', '.join(networks)}")
    return [replace(s, name=source) for s, source in zip(subjects, networks, strict=True)]


def _show(report: Report) -> None:
    for network, provenance in report.provenance.items():
        samples = report.frame[report.frame["network"] == network]["sample"].nunique()
        typer.echo(f"{network}: {samples} images, reference {provenance['reference']['engine']}")
    typer.echo("\nRelative error of the gradient, medians:\n")
    print_table(overview(report.frame).fillna("-"))
    if report.frame["is_sign_twin"].any():
        typer.echo("(targeted scenarios: the same gradients with the sign changed)")
    for network, lines in report.summary().groupby("network", sort=False):
        typer.echo(f"\n{network}")
        for _, line in lines.iterrows():
            print_verdict(f"  {line['loss']:>8} in {line['format']:8} ", line["verdict"])
        rows = report.frame[report.frame["network"] == network]
        short = answer(verdicts(rows[~rows["is_sign_twin"]], Thresholds()))
        typer.echo(f"  In short: {' '.join(filter(None, [*short.sentences, short.remedy]))}")
        typer.echo(f"  {headline(rows)}")


def _states(report: Report) -> set[str]:
    """The states of the verdicts on every loss in every format."""
    pairs = report.frame[["loss", "format"]].drop_duplicates().itertuples(index=False)
    return {verdict.state for loss, fmt in pairs for verdict in report.verdicts(loss, fmt).values()}


def _say_what_is_missing(report: Report) -> bool:
    """Say which rows were not measured, and why.

    Returns:
        Whether every network has a row that was measured.
    """
    parts = [(name, report.frame[report.frame["network"] == name]) for name in report.provenance]
    for network, rows in parts:
        sentence = unmeasured_sentence(rows, with_results=not is_any_measured(rows))
        if sentence is not None:
            typer.echo(f"fperr: {network}: {sentence}", err=True)
    return all(is_any_measured(rows) for _, rows in parts)


def _write(report: Report, run: RunFolder) -> None:
    """Write the results, the rows first, and say how many images an earlier run measured."""
    run.publish("measurements.parquet", report.to_bytes())
    run.publish("relative_error.png", picture(report.plot.relative_error(), dpi=150))
    run.publish("report.html", report.to_html().encode())
    for network, provenance in report.provenance.items():
        read, samples = provenance.get("samples_read_back"), provenance["inputs"]["samples"]
        if read:
            typer.echo(
                f"{network}: {read} of {samples} images were measured before, and read from "
                f"{run.path / _ROWS}"
            )
    names = ("measurements.parquet", "relative_error.png", "report.html")
    typer.echo("Written: " + ", ".join(str(run.path / name) for name in names) + "\n")
