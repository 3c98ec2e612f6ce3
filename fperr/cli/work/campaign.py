"""The work of `fperr campaign run`, `status`, `resume` and `collect`."""

from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from fperr.campaign.cells import plan_of
from fperr.campaign.cluster_options import ClusterOptions
from fperr.campaign.entry import Ended, planned, run_campaign
from fperr.campaign.folder import SETTINGS_FILE, opened_folder
from fperr.campaign.spec import Spec, read_spec
from fperr.campaign.tally import Tally
from fperr.campaign.view import view_of
from fperr.cli.options import folder_name
from fperr.cli.work.terminal import print_table, progress_bar, stopped_by_signals

FOLDER = "collected"
_INTERRUPTED = 130


def run_command(
    *,
    spec: Path,
    workers: int,
    scheduler: str | None,
    slurm: bool,
    out: Path | None,
    memory: str | None,
    retry_failed: bool,
    allow_code: bool,
    dry_run: bool,
    tls_ca_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    quiet: bool,
) -> None:
    """Run a campaign: its models, data and jobs, cut into cells, on one machine or a cluster."""
    content = read_spec(spec, allows_code=allow_code)
    folder = _folder(content, out)
    if dry_run:
        _forecast(content, folder, workers)
        return
    if scheduler is not None and slurm:
        raise ValueError("--scheduler and --slurm exclude each other: leave one out")
    files = {"ca_file": tls_ca_file, "cert": tls_cert, "key": tls_key}
    tls = {name: path for name, path in files.items() if path is not None}
    if tls and scheduler is None:
        raise ValueError(
            "the --tls options belong to --scheduler: workers of our own listen on 127.0.0.1 only"
        )
    cluster_options = ClusterOptions(
        workers, scheduler, slurm, content.options["slurm"], memory, tls
    )
    try:
        with stopped_by_signals() as check, progress_bar(quiet=quiet) as bar:
            task = bar.add_task(content.name, total=None, text="")

            def advance(tally: Tally) -> None:
                check()
                text = f"{tally.failed} failed" if tally.failed else ""
                done = tally.finished + tally.failed
                bar.update(task, total=tally.total, completed=done, text=text)

            ended = run_campaign(
                content, folder, cluster_options, retries_failed=retry_failed, advance=advance,
                notify=_say,
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"fperr: interrupted; the same command goes on from {folder}", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    _tell(ended, content, folder)


def resume_command(
    *,
    spec: Path,
    workers: int,
    scheduler: str | None,
    slurm: bool,
    out: Path | None,
    memory: str | None,
    retry_failed: bool,
    allow_code: bool,
    tls_ca_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    quiet: bool,
) -> None:
    """Run what is missing of a campaign that was begun."""
    folder = _folder(read_spec(spec, allows_code=allow_code), out)
    if not (folder / SETTINGS_FILE).exists():
        raise ValueError(
            f"{folder} holds no campaign to resume: `fperr campaign run {spec}` begins one there, "
            "or name its folder with --out"
        )
    run_command(
        spec=spec, workers=workers, scheduler=scheduler, slurm=slurm, out=out, memory=memory,
        retry_failed=retry_failed, allow_code=allow_code, dry_run=False, tls_ca_file=tls_ca_file,
        tls_cert=tls_cert, tls_key=tls_key, quiet=quiet,
    )  # fmt: skip


def status_command(*, spec: Path, out: Path | None, allow_code: bool) -> None:
    """Tell how far a campaign is: cells, executions, cost so far, and computing that is left."""
    content = read_spec(spec, allows_code=allow_code)
    status = _module("status").status_of(view_of(content, _folder(content, out)))
    print_table(status.table, "{:.1f}".format)
    typer.echo(
        f"{status.finished} of {status.cells} cells are finished, by {status.executions} "
        f"executions ({status.cut_off} at work or cut off)"
    )
    left = status.seconds_left
    typer.echo(
        f"Computing so far {_duration(status.seconds)}; left "
        f"{'unknown: nothing is finished yet' if left is None else _duration(left)}, to be divided "
        "by the number of workers"
    )
    if status.foreign:
        typer.echo(
            f"{status.foreign} parts are of no cell of this spec: of earlier files, options or "
            "versions. They are not used"
        )
    for words, error in status.failures:
        typer.echo(f"failed: {words}: {error}", err=True)
    _say_absent(status.absent)
    if status.failures or status.absent:
        raise typer.Exit(1)


def collect_command(*, spec: Path, out: Path | None, allow_code: bool, quiet: bool) -> None:
    """Collect what is finished: tables, a page for each model, a leaderboard, figures."""
    content = read_spec(spec, allows_code=allow_code)
    folder = _folder(content, out)
    view = view_of(content, folder)
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("collect", total=len(view.plan.models), text="")
        collected = _module("collect").collect(
            view, folder / FOLDER, lambda name: bar.update(task, advance=1, text=name)
        )
    print_table(_module("leaderboard").cells_of(collected.leaderboard))
    for name, sentence in collected.sentences.items():
        typer.echo(f"{name}: {sentence}")
    for kind, count in collected.rows.items():
        typer.echo(f"{kind}: {count} rows")
    for remark in collected.remarks:
        typer.echo(f"fperr: {remark}", err=True)
    typer.echo("Written: " + ", ".join(map(str, collected.files)))
    _say_absent(dict(view.plan.absent))
    if collected.missing or view.plan.absent:
        raise typer.Exit(1)


def _module(name: str) -> Any:
    """A module that takes seconds to load, and that other commands do not need."""
    return import_module(f"fperr.campaign.{name}")


def _folder(spec: Spec, out: Path | None) -> Path:
    return out or Path("out") / folder_name(spec.name)


def _forecast(spec: Spec, folder: Path, workers: int) -> None:
    """Print the forecast of a campaign; sizes of cells stay in the folder, if they are forecast."""
    if spec.options["cell_seconds"] is None:
        plan = plan_of(spec)
    else:
        with opened_folder(spec, folder) as campaign:
            plan = planned(spec, campaign)
    seconds = size = 0.0
    for forecast in _module("forecast").forecasts(plan):
        typer.echo(
            f"{forecast.model}, {forecast.key}: {forecast.cells} cells of at most "
            f"{forecast.images} images, {forecast.seconds:.1f} s each"
        )
        seconds += forecast.all_seconds
        size += forecast.bytes
    typer.echo(
        f"{len(plan.cells)} cells, about {_duration(seconds)} of computing, "
        f"{_duration(seconds / workers)} by {workers} worker{'s' * (workers > 1)}; "
        f"about {size / 1e6:.1f} MB of parts"
    )
    _say_absent(dict(plan.absent))


def _tell(ended: Ended, spec: Spec, folder: Path) -> None:
    tally = ended.tally
    typer.echo(
        f"{ended.before + tally.finished} of {ended.cells} cells are finished: {ended.before} "
        f"before, {tally.finished} in this run, by {tally.begun} executions"
    )
    for record in ended.failures.values():
        typer.echo(f"failed: {record['words']}: {record['error']}", err=True)
    _say_absent(dict(ended.absent))
    out = "" if folder == _folder(spec, None) else f" --out {folder}"
    if ended.failures:
        typer.echo(
            f"fperr: {len(ended.failures)} cells have failed; their tracebacks are in "
            f"{folder}/failures. `fperr campaign resume {spec.path}{out} --retry-failed` tries "
            "them again",
            err=True,
        )
    typer.echo(f"Next: fperr campaign collect {spec.path}{out}")
    if not ended.is_complete:
        raise typer.Exit(1)


def _say_absent(absent: dict[str, str]) -> None:
    for name, why in absent.items():
        typer.echo(f"missing: {name}: {why}", err=True)


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
