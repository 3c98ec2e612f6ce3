"""The options of `fperr doctor`."""

from typing import Annotated

import typer


def doctor_command(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say what is installed: versions, CPU, devices, data, and what optional packages enable."""
