"""The command line: `fperr measure`, `attack`, `attribute`, `layers`, and the other commands."""

import sys
from typing import Annotated

import typer

from fperr import __version__
from fperr.cli import attack, attribute, figures, layers, measure, report, validate, zoo
from fperr.cli.faults import Commands, ended

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(validate.app, name="validate")
app.command("measure")(measure.measure_command)
app.command("layers")(layers.layers_command)
app.command("attack")(attack.attack_command)
app.command("report")(report.report_command)
app.command("attribute")(attribute.attribute_command)
app.command("figures")(figures.figures_command)
app.command("zoo")(zoo.zoo_command)


def _show_version(is_asked_for: bool) -> None:
    if is_asked_for:
        typer.echo(f"fperr {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="show the version and exit"
        ),
    ] = False,
) -> None:
    """How much of an adversarial-attack result is floating-point error?"""


def main() -> None:
    """Run the command line: every error ends with one line on standard error and exit code 2."""
    try:
        app()
    except Exception as fault:  # also one of another library: never a bare traceback
        sys.exit(ended(fault))
