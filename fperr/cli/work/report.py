"""The work of `fperr report`: the report page."""

from pathlib import Path

import typer

from fperr import storage
from fperr.report.frame import Report


def report_command(
    *,
    measurements: Path,
    out: Path | None,
    quiet: bool,
) -> None:
    """Rebuild the report page of a measurement."""
    del quiet  # it prints no progress
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
