"""The options of `fperr measure`."""

from pathlib import Path
from typing import Annotated

import typer

from fperr.cli import options
from fperr.cli.names import (
    ENGINES,
    FORMATS,
    LOSSES,
    SCENARIOS,
    completes,
    completes_list,
    listed,
)


def measure_command(
    networks: options.NetworksArgument,
    dataset: options.DatasetOption = None,
    checkpoint: options.CheckpointOption = None,
    logits: options.LogitsOption = None,
    device: options.DeviceOption = "cpu",
    n: Annotated[
        int | None, typer.Option(help="number of images; by default 80, or all if fewer")
    ] = None,
    losses: Annotated[
        str,
        typer.Option(
            help=f"names of losses, comma-separated: {listed(LOSSES)}; parameters as in mifpe:T=4",
            autocompletion=completes_list(*LOSSES),
        ),
    ] = "ce,mifpe,tmifpe",
    formats: Annotated[
        str,
        typer.Option(
            help=f"names of formats, comma-separated: {listed(FORMATS)}",
            autocompletion=completes_list(*FORMATS),
        ),
    ] = ("float16,float32,float64"),
    scenarios: Annotated[
        str,
        typer.Option(
            help="observed (by the true label), all, or names, comma-separated: "
            f"{listed(SCENARIOS)}",
            autocompletion=completes_list("observed", "all", *SCENARIOS),
        ),
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
            "mpmath, or auto",
            autocompletion=completes(*ENGINES),
        ),
    ] = "auto",
    max_seconds: Annotated[
        float | None,
        typer.Option(help="compute no more balls after so many seconds; the same command goes on"),
    ] = None,
    reference: options.RenamedOption = None,
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
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="end with exit code 3 if a verdict is as bad as that: untrustworthy, or unclear "
            "(every verdict but trustworthy)",
            autocompletion=completes("untrustworthy", "unclear"),
        ),
    ] = None,
    quiet: options.QuietOption = False,
) -> None:
    """Measure the floating-point error of the gradients of networks on real images.

    Rows are written as soon as they are computed, and the same command continues where it was cut
    off.

    Exit code 1: no row of a network could be measured. 3: a verdict is as bad as --fail-on says.
    130: Ctrl-C or SIGTERM. In all these cases the computed rows are written.
    """
