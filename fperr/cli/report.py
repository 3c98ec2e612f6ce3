"""The options of `fperr report`."""

from pathlib import Path
from typing import Annotated

import typer

from fperr.cli import options


def report_command(
    measurements: Annotated[
        Path, typer.Argument(help="measurements.parquet that `fperr measure` wrote")
    ],
    out: Annotated[
        Path | None, typer.Option(help="page to write; by default report.html beside it")
    ] = None,
    quiet: options.QuietOption = False,
) -> None:
    """Rebuild the report page of a measurement."""
