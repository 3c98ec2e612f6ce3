"""The options of `fperr fetch`."""

from typing import Annotated

import typer

from fperr.cli.names import DATASETS, NETWORKS, completes


def fetch_command(
    names: Annotated[
        list[str],
        typer.Argument(
            help="networks (with their data sets) or data sets: those of `fperr zoo`",
            autocompletion=completes(*NETWORKS, *DATASETS),
        ),
    ],
) -> None:
    """Download published weights and data sets into the data folder, checked by their SHA-256.

    The folder is the one that FPERR_DATA names, or the user's own (`fperr doctor` says which).
    Files that are there are not fetched again. No other command downloads anything.
    """
