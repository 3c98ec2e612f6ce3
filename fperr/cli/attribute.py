"""The options of `fperr attribute`."""

from pathlib import Path
from typing import Annotated

import typer

from fperr.cli import options
from fperr.cli.names import EXACT_CHOICES, FORMATS, NORMS, SEARCH_CHOICES, completes, listed


def attribute_command(
    network: options.NetworkArgument,
    radius: options.RadiusOption,
    n: Annotated[
        int | None, typer.Option(help="number of images; by default 200, or all if fewer")
    ] = None,
    norm: Annotated[
        str,
        typer.Option(help=f"norm of the ball: {listed(NORMS)}", autocompletion=completes(*NORMS)),
    ] = "linf",
    steps: Annotated[int, typer.Option(help="number of gradients in each run")] = 100,
    starts: Annotated[int, typer.Option(help="number of random starts of each image")] = 3,
    format: Annotated[
        str,
        typer.Option(
            help=f"format of network and gradient: {listed(FORMATS)}",
            autocompletion=completes(*FORMATS),
        ),
    ] = "float32",
    exact: Annotated[
        str,
        typer.Option(
            help="images with exact gradients: all, sample, none, or auto (all if that takes "
            "20 minutes at most)",
            autocompletion=completes(*EXACT_CHOICES),
        ),
    ] = "auto",
    search: Annotated[
        str | None,
        typer.Option(
            help="what the floor is made of: restarts (all starts of all arms) or autoattack",
            autocompletion=completes(*SEARCH_CHOICES),
        ),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="tell underflow and cancellation in the loss apart")
    ] = False,
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
            help="classes to reach: next (the class after an image's own), random, or the name of "
            "an array of classes in the .npz"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="number of images at once")] = 250,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only print a forecast of the time")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder to write to; the same command continues in it; by default "
            "out/NAME-attribution"
        ),
    ] = None,
    quiet: options.QuietOption = False,
) -> None:  # fmt: skip
    """Tell how much of an attack's robust accuracy is floating-point error."""
