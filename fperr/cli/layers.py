"""The options of `fperr layers`."""

from pathlib import Path
from typing import Annotated

import typer

from fperr.cli import options
from fperr.cli.names import FORMATS, LOSSES, completes, listed


def layers_command(
    network: options.NetworkArgument,
    dataset: options.DatasetOption = None,
    checkpoint: options.CheckpointOption = None,
    logits: options.LogitsOption = None,
    device: options.DeviceOption = "cpu",
    n: Annotated[
        int | None, typer.Option(help="number of images; by default 4, or all if fewer")
    ] = None,
    loss: Annotated[
        str,
        typer.Option(help=f"name of the loss: {listed(LOSSES)}", autocompletion=completes(*LOSSES)),
    ] = "mifpe",
    format: Annotated[
        str,
        typer.Option(
            help=f"name of the format: {listed(FORMATS)}", autocompletion=completes(*FORMATS)
        ),
    ] = "float16",
    accept_probabilities: Annotated[
        bool, typer.Option("--accept-probabilities", help="trace a model that ends in softmax")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="folder to write to; by default out/NAME-layers")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="write into a folder that is not empty")
    ] = False,
    quiet: options.QuietOption = False,
) -> None:
    """Show where along a network the error of its gradient arises."""
