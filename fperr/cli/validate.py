"""The options of `fperr validate kernels`, `bounds` and `assumption`."""

from pathlib import Path
from typing import Annotated

import typer

from fperr.cli import options
from fperr.cli.names import FORMATS, KERNELS, NETWORKS, completes, completes_list, listed


def kernels_command(
    device: Annotated[str, typer.Option(help="where the kernels run")] = "cpu",
    stride: Annotated[int, typer.Option(help="try one float32 in so many, and keep nothing")] = 1,
    quiet: options.QuietOption = False,
) -> None:
    """Sweep every float32 through this machine's exp and log, and keep the largest errors."""


def bounds_command(
    cases: Annotated[int, typer.Option(help="logit vectors for each format")] = 100_000,
    formats: Annotated[
        str,
        typer.Option(
            help=f"names of formats, comma-separated: {listed(f for f in FORMATS if f != 'tf32')}",
            autocompletion=completes_list(*FORMATS),
        ),
    ] = ("float16,bfloat16,float32,float64"),
    kernel: Annotated[
        str, typer.Option(help=f"kernels: {listed(KERNELS)}", autocompletion=completes(*KERNELS))
    ] = "cpu",
    seed: Annotated[int, typer.Option(help="seed of the random numbers")] = 0,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("out/bounds"),
    quiet: options.QuietOption = False,
) -> None:
    """Try to refute the bounds on the logit gradient, at random and by search."""


def assumption_command(
    networks: Annotated[
        list[str],
        typer.Argument(
            help="names that `fperr zoo` lists",
            metavar="NETWORK",
            autocompletion=completes(*NETWORKS),
        ),
    ],
    n: Annotated[int, typer.Option(help="number of images, the first of the data set")] = 40,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("out/assumption"),
    quiet: options.QuietOption = False,
) -> None:
    """Is the size of the gradient G(t) times a constant, as maximising G takes for granted?"""
