"""The options of `fperr campaign run`, `status`, `resume` and `collect`."""

from pathlib import Path
from typing import Annotated

import typer

from fperr.cli import options

_SpecArgument = Annotated[
    Path, typer.Argument(help="the campaign's spec, a TOML file", metavar="SPEC")
]
_OutOption = Annotated[
    Path | None,
    typer.Option(help="folder of the campaign; by default out/NAME, with the spec's name"),
]
_WorkersOption = Annotated[
    int, typer.Option(help="number of worker processes, of this machine or of SLURM", min=1)
]
_SchedulerOption = Annotated[
    str | None,
    typer.Option(help="address of a running Dask scheduler, as tcp://host:8786"),
]
_SlurmOption = Annotated[
    bool,
    typer.Option("--slurm", help="start the workers as jobs of SLURM, by the spec's table slurm"),
]
_MemoryOption = Annotated[
    str | None,
    typer.Option(help="memory of each worker, as 4GB; one that needs more is ended"),
]
_CodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="run module.py:... from outside the spec's folder, too"),
]
_RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="run cells again that are recorded as failed")
]
_TlsCaOption = Annotated[
    Path | None, typer.Option(help="file of the authority that signed the scheduler's certificate")
]
_TlsCertOption = Annotated[Path | None, typer.Option(help="file of our certificate")]
_TlsKeyOption = Annotated[Path | None, typer.Option(help="file of our key")]


def run_command(
    spec: _SpecArgument,
    workers: _WorkersOption = 1,
    scheduler: _SchedulerOption = None,
    slurm: _SlurmOption = False,
    out: _OutOption = None,
    memory: _MemoryOption = None,
    retry_failed: _RetryOption = False,
    allow_code: _CodeOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only print a forecast of cells, time and bytes")
    ] = False,
    tls_ca_file: _TlsCaOption = None,
    tls_cert: _TlsCertOption = None,
    tls_key: _TlsKeyOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Run a campaign: its models, data and jobs, cut into cells, on one machine or a cluster.

    Each finished cell is written; the same command, and `resume`, run only what is missing.

    Exit code 1: cells have failed, or models are missing. 130: Ctrl-C or SIGTERM.
    """


def resume_command(
    spec: _SpecArgument,
    workers: _WorkersOption = 1,
    scheduler: _SchedulerOption = None,
    slurm: _SlurmOption = False,
    out: _OutOption = None,
    memory: _MemoryOption = None,
    retry_failed: _RetryOption = False,
    allow_code: _CodeOption = False,
    tls_ca_file: _TlsCaOption = None,
    tls_cert: _TlsCertOption = None,
    tls_key: _TlsKeyOption = None,
    quiet: options.QuietOption = False,
) -> None:
    """Run what is missing of a campaign that was begun."""


def status_command(
    spec: _SpecArgument, out: _OutOption = None, allow_code: _CodeOption = False
) -> None:
    """Tell how far a campaign is: cells, executions, cost so far, and computing that is left.

    Exit code 1: cells have failed, or models are missing.
    """


def collect_command(
    spec: _SpecArgument,
    out: _OutOption = None,
    allow_code: _CodeOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Collect what is finished: tables, a page for each model, a leaderboard, figures.

    Exit code 1: cells or models are missing.
    """
