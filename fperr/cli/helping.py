"""Help pages: examples under each, paragraphs that flow, flags that take no value."""

import inspect
from typing import Any

import typer
from typer.core import TyperCommand

from fperr.cli.deferred import deferred
from fperr.cli.faults import Commands

DOCUMENTATION = "README.md and docs/ of the source; every function of Python has a docstring"


class Command(TyperCommand):
    """A command whose help shows a flag without the type of a value."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters: a flag's metavar is empty."""
        return without_types_of_flags(super().get_params(ctx))


class Group(Commands):
    """A group of commands whose help shows a flag without the type of a value."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters: a flag's metavar is empty."""
        return without_types_of_flags(super().get_params(ctx))


def without_types_of_flags(parameters: Any) -> Any:
    """The parameters, where the metavar of each flag is empty: `<bool>` would ask for a value."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


def flowing(text: str) -> str:
    """A docstring whose paragraphs are one line each: the terminal breaks them."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def add(app: typer.Typer, name: str, options: Any, *examples: str) -> None:
    """Add the command that a function declares, with examples under its help."""
    lines = "\n\n".join(["Examples:", *(f"  {example}" for example in examples)])
    app.command(name, cls=Command, help=flowing(options.__doc__), epilog=lines)(deferred(options))
