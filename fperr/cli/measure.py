"""The command line of the measurement: `fperr measure`."""

import contextlib
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fperr.cli.options import folder_name, renamed
from fperr.cli.subjects import (
    CheckpointOption,
    DatasetOption,
    LogitsOption,
    Subject,
    check_folder,
    subject_of,
)
from fperr.errors import FperrError, StorageError
from fperr.measurement import estimate, measure
from fperr.reasons import UnmeasuredWarning, is_any_measured, unmeasured_sentence
from fperr.report.frame import Report
from fperr.report.style import picture
from fperr.report.summary import advice, headline, overview
from fperr.report.verdict import Thresholds
from fperr.run_folder import RunFolder, opened
from fperr.storage import file_name

_ABOUT, _ROWS = "command.json", "rows"
_FILES = (_ROWS, "measurements.parquet", "relative_error.png", "report.html")
_REMEDY = "give another folder with --out, or begin anew with --overwrite"
_INTERRUPTED = 130


def measure_command(
    networks: Annotated[
        list[str],
        typer.Argument(help="names that `fperr zoo` lists, or path/to/module.py:factory"),
    ],
    dataset: DatasetOption = None,
    checkpoint: CheckpointOption = None,
    logits: LogitsOption = None,
    n: Annotated[
        int | None, typer.Option(help="number of images; by default 60, or all if fewer")
    ] = None,
    losses: Annotated[
        str, typer.Option(help="names of losses, comma-separated")
    ] = "ce,mifpe,tmifpe",
    formats: Annotated[str, typer.Option(help="names of formats, comma-separated")] = (
        "float16,float32,float64"
    ),
    scenarios: Annotated[
        str, typer.Option(help="observed (by the true label), all, or names, comma-separated")
    ] = "observed",
    loss_scale: Annotated[float, typer.Option(help="factor on the loss")] = 1.0,
    digits: Annotated[
        int | None,
        typer.Option(
            help="correct decimal digits of the exact gradients; by default what four digits of "
            "each format's error need"
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="exact engine to begin with: float64 (agreement), double_word, ball (proves), "
            "mpmath, or auto"
        ),
    ] = "auto",
    max_seconds: Annotated[
        float | None,
        typer.Option(help="compute no more balls after so many seconds; the same command goes on"),
    ] = None,
    reference: Annotated[str | None, typer.Option(hidden=True, callback=renamed)] = None,
    certify: Annotated[
        bool, typer.Option("--certify", help="prove an interval for every relative error")
    ] = False,
    accept_probabilities: Annotated[
        bool, typer.Option("--accept-probabilities", help="measure a model that ends in softmax")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only print a forecast of rows, time and memory")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder to write to; the same command continues in it; by default out/NAME"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="begin anew in a folder that is not empty")
    ] = False,
) -> None:
    """Measure the floating-point error of the gradients of networks on real images.

    Rows are written as soon as they are computed, and the same command continues where it was cut
    off. Exit code 1: no row of a network could be measured. Exit code 130: Ctrl-C or SIGTERM. In
    both cases the computed rows are written.
    """
    del reference
    subjects = [subject_of(name, checkpoint, logits, dataset, n) for name in networks]
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
        report = _measured(subjects, assigned, request, limits, run)
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


def _measured(
    subjects: list[Subject],
    assigned: str | None,
    request: dict[str, Any],
    limits: dict[str, Any],
    run: RunFolder,
) -> Report:
    """The reports of all networks in one; what is finished is written if a fault ends it."""
    run.begin({"networks": [s.name for s in subjects], "scenarios": assigned, **request})
    if (run.path / _ROWS).is_symlink():
        raise ValueError(
            f"{run.path / _ROWS} is a symbolic link, which is not followed: remove it, or {_REMEDY}"
        )
    reports: list[Report] = []
    try:
        with _sigterm_as_ctrl_c():
            for number, subject in enumerate(subjects):
                folder = run.path / _ROWS / f"{number:02d}-{file_name(subject.name)}"
                model, x, y = subject.arguments(assigned)
                with warnings.catch_warnings():  # said at the end, for all networks
                    warnings.simplefilter("ignore", UnmeasuredWarning)
                    report = measure(
                        model,
                        x,
                        y,
                        progress=True,
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


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C: a batch system ends commands with it, and rows must be written."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets handlers in the main thread only
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


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
    typer.echo(overview(report.frame).fillna("-").to_string(index=False))
    if report.frame["is_sign_twin"].any():
        typer.echo("(targeted scenarios: the same gradients with the sign changed)")
    for network, lines in report.summary().groupby("network", sort=False):
        typer.echo(f"\n{network}")
        for _, line in lines.iterrows():
            typer.echo(f"  {line['loss']:>8} in {line['format']:8} {line['verdict']}")
        rows = report.frame[report.frame["network"] == network]
        typer.echo(f"  In short: {advice(rows, Thresholds())}")
        typer.echo(f"  {headline(rows)}")


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
