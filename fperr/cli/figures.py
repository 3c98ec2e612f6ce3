"""The options of `fperr figures`."""

from pathlib import Path
from typing import Annotated

import typer

from fperr.cli import options
from fperr.cli.names import FIGURES, NETWORKS, PICTURES, completes, completes_list, listed


def figures_command(
    names: Annotated[
        list[str],
        typer.Argument(
            help=f"all, or some of {listed(FIGURES)}",
            metavar="NAME",
            autocompletion=completes("all", *FIGURES),
        ),
    ],
    n: Annotated[
        int | None,
        typer.Option(
            help="number of images, the first of each network; by default 100, for table1 200",
            show_default=False,
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="10,000 images of small networks, 2,000 of larger ones, 1,000 in a GPU's "
            "arithmetic; hours",
        ),
    ] = False,
    networks: Annotated[
        str | None,
        typer.Option(
            help="names that `fperr zoo` lists, comma-separated; by default a figure's own: "
            "packaged ones, and those whose files are at hand (fperr zoo)",
            autocompletion=completes_list(*NETWORKS),
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("figures"),
    cache: Annotated[
        Path | None, typer.Option(help="folder of results that are used again")
    ] = None,
    pictures: Annotated[
        str,
        typer.Option(
            help=f"file formats, comma-separated: {listed(PICTURES)}",
            autocompletion=completes_list(*PICTURES),
        ),
    ] = "png",
    device: options.DeviceOption = "cpu",
    quiet: options.QuietOption = False,
) -> None:
    """Draw the papers' figures and tables from real networks; results are kept and used again."""
