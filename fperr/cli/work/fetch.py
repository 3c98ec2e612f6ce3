"""The work of `fperr fetch`."""

import typer

from fperr import zoo


def fetch_command(*, names: list[str]) -> None:
    """Download published weights and data sets into the data folder, checked by their SHA-256."""
    for name in names:
        zoo.downloads(name)  # a wrong name is told before anything is fetched
    for name in names:
        for path in zoo.fetch(name, progress=True):
            typer.echo(path)
