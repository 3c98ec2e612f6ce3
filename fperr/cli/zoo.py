"""The command line of the packaged networks: `fperr zoo`."""

import typer

from fperr import zoo


def zoo_command() -> None:
    """List the networks that the other commands know by name."""
    for entry in zoo.REGISTRY.values():
        typer.echo(f"{entry.name:26} {entry.dataset:20} {entry.source}")
