"""The command line: `fperr measure NAME`, `fperr zoo`."""

import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from fperr import data, zoo
from fperr.errors import FperrError
from fperr.measurement import measure
from fperr.report.frame import Report
from fperr.report.summary import headline

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="How much of an adversarial-attack result is floating-point error?",
)
_SHOWN = ["scenario", "loss", "format", "rows", "delta_q25", "delta_median", "delta_q75"]
_SHOWN += ["sign_error_median", "dead", "capped", "not_finite"]


@app.command("measure")
def measure_command(
    name: Annotated[str, typer.Argument(help="a network of the zoo; `fperr zoo` lists them")],
    dataset: Annotated[
        str | None,
        typer.Option("--data", help="data set, .npz with x and y, or folder of Fashion-MNIST"),
    ] = None,
    n: Annotated[int, typer.Option(help="the first n images")] = 40,
    losses: Annotated[str, typer.Option(help="names, comma-separated")] = "ce,mifpe,tmifpe",
    formats: Annotated[str, typer.Option(help="names, comma-separated")] = (
        "float16,float32,float64"
    ),
    scenarios: Annotated[
        str, typer.Option(help="observed (by the true label), all, or names, comma-separated")
    ] = "observed",
    loss_scale: Annotated[float, typer.Option(help="factor on the loss")] = 1.0,
    digits: Annotated[int, typer.Option(help="decimal digits of the reference")] = 50,
    out: Annotated[
        Path | None, typer.Option(help="folder to write to; out/NAME if missing")
    ] = None,
) -> None:
    """Measure the floating-point error of the gradients of a network on real images."""
    model = zoo.load(name)
    images = _images(dataset or zoo.entry(name).dataset).first(n)
    assigned = None if scenarios == "observed" else scenarios
    folder = out or Path("out") / name
    try:
        report = measure(
            model,
            images.x,
            images.y if assigned is None else None,
            losses=losses.split(","),
            formats=formats.split(","),
            scenarios=assigned if assigned in (None, "all") else assigned.split(","),
            loss_scale=loss_scale,
            digits=digits,
            progress=True,
        )
    except FperrError as fault:
        if isinstance(fault.report, Report):
            _write(fault.report, folder)
        raise
    if not len(report.frame):
        raise FperrError("interrupted before the first sample was finished: nothing to report")
    _show(report, name, images.name)
    _write(report, folder)


@app.command("zoo")
def zoo_command() -> None:
    """List the networks that can be had by name."""
    for entry in zoo.REGISTRY.values():
        typer.echo(f"{entry.name:26} {entry.dataset:20} {entry.source}")


def _images(name: str) -> data.Images:
    folder = Path(name)
    return data.fashion_mnist("t10k", folder) if folder.is_dir() else data.named(name)


def _show(report: Report, network: str, images: str) -> None:
    independent = report.frame[~report.frame["is_sign_twin"]]
    table = Report(independent, report.provenance).summary(("scenario", "loss", "format"))
    samples = report.frame["sample"].nunique()
    typer.echo(
        f"\n{network} on {samples} images of {images}; reference: "
        f"{report.provenance['reference']['engine']}\n"
    )
    with pd.option_context("display.width", 200, "display.max_columns", None):
        typer.echo(table[_SHOWN].to_string(index=False, float_format=lambda v: f"{v:.2g}"))
    twins = report.frame[report.frame["is_sign_twin"]]["scenario"].unique()
    if len(twins):
        typer.echo(f"({' and '.join(twins)}: the same gradients with the sign changed)")
    typer.echo()
    for _, line in report.summary().iterrows():
        typer.echo(f"{line['loss']:>8} in {line['format']:8}  {line['verdict']}")
    typer.echo(f"\n{headline(report.frame)}")


def _write(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    report.to_parquet(folder / "measurements.parquet")
    written = [folder / "measurements.parquet"]
    figures = {
        "relative_error.png": report.plot.relative_error,
        "sign_errors.png": report.plot.sign_errors,
        "stages.png": report.plot.stages,
    }
    for file, draw in figures.items():
        draw().savefig(folder / file, dpi=150)
        written.append(folder / file)
    typer.echo("Written: " + ", ".join(map(str, written)))


def main() -> None:
    """Run the command line: faults end with their text on standard error and exit code 2."""
    try:
        app()
    except (FperrError, ValueError, TypeError) as fault:
        typer.echo(f"fperr: {fault}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
