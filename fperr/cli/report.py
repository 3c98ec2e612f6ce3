"""The command line of the report page: `fperr report`."""

from pathlib import Path
from typing import Annotated

import typer

from fperr import storage
from fperr.report.frame import Report


def report_command(
    measurements: Annotated[
        Path, typer.Argument(help="measurements.parquet that `fperr measure` wrote")
    ],
    out: Annotated[
        Path | None, typer.Option(help="page to write; by default report.html beside it")
    ] = None,
) -> None:
    """Rebuild the report page of a measurement."""
    written = "give the measurements.parquet that `fperr measure` writes"
    if not measurements.is_file():
        raise ValueError(f"{measurements} is missing or a folder: {written}")
    if measurements.suffix != ".parquet":
        raise ValueError(f"{measurements} is no .parquet file: {written}")
    page = out or measurements.parent / "report.html"
    if page.is_dir():
        raise ValueError(f"{page} is a folder: give --out a file, e.g. {page / 'report.html'}")
    if not page.parent.is_dir():
        raise ValueError(f"{page.parent} is no folder: make it, or give --out another file")
    storage.write(page, Report.from_parquet(measurements).to_html().encode())
    typer.echo(f"Written: {page}")
