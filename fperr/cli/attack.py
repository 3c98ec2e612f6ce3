"""The options of `fperr attack`."""

from pathlib import Path
from typing import Annotated

import typer

from fperr.cli import options
from fperr.cli.names import FORMATS_OF_ATTACK, LOSSES, METHODS, NORMS, completes, listed


def attack_command(
    network: options.NetworkArgument,
    radius: options.RadiusOption,
    loss: Annotated[
        str,
        typer.Option(
            help=f"name of the loss that is ascended: {listed(LOSSES)}; parameters as in mifpe:T=4",
            autocompletion=completes(*LOSSES),
        ),
    ] = "tmifpe",
    n: Annotated[
        int | None, typer.Option(help="number of images; by default 100, or all if fewer")
    ] = None,
    method: Annotated[
        str,
        typer.Option(help=f"method: {listed(METHODS)}", autocompletion=completes(*METHODS)),
    ] = "pgd",
    norm: Annotated[
        str,
        typer.Option(help=f"norm of the ball: {listed(NORMS)}", autocompletion=completes(*NORMS)),
    ] = "linf",
    steps: Annotated[int, typer.Option(help="number of gradients in each run")] = 100,
    format: Annotated[
        str,
        typer.Option(
            help=f"format of network and gradient: {listed(FORMATS_OF_ATTACK)}",
            autocompletion=completes(*FORMATS_OF_ATTACK),
        ),
    ] = "float32",
    arithmetic: options.RenamedOption = None,
    restarts: Annotated[int, typer.Option(help="number of runs, each from another start")] = 1,
    seed: Annotated[int, typer.Option(help="seed of the random starting points")] = 0,
    dataset: options.DatasetOption = None,
    checkpoint: options.CheckpointOption = None,
    logits: options.LogitsOption = None,
    device: options.DeviceOption = "cpu",
    accept_probabilities: Annotated[
        bool, typer.Option("--accept-probabilities", help="attack a model that ends in softmax")
    ] = False,
    box: options.BoxOption = "0,1",
    targets: Annotated[
        str | None,
        typer.Option(
            help="classes to reach: a class (its own images are left out), next (the class after "
            "an image's own), random, or the name of an array of classes in the .npz"
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="number of images at once; each batch is written")
    ] = 250,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder to write to; the same command continues in it; by default out/NAME-LOSS"
        ),
    ] = None,
    quiet: options.QuietOption = False,
) -> None:
    """Attack a network on real images. Each batch is written; the same command continues it."""
