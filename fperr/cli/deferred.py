"""Commands whose work is loaded when they run: help and completion load neither torch nor plots."""

import contextlib
import functools
import io
from collections.abc import Callable
from importlib import import_module

from fperr.vocabulary import RENAMED_OPTIONS


def deferred(options: Callable[..., None]) -> Callable[..., None]:
    """The command whose options a function declares.

    Its work is the function of the same name in the module of the same name in `fperr.cli.work`.
    With `--quiet`, what that prints to standard output is dropped. Options of earlier versions are
    refused before, and not handed on.

    Args:
        options: Function with a typed signature, a docstring, and no body.
    """
    module = options.__module__.replace("fperr.cli.", "fperr.cli.work.")

    @functools.wraps(options)
    def command(**values: object) -> None:
        work: Callable[..., None] = getattr(import_module(module), options.__name__)
        with contextlib.ExitStack() as stack:
            if values.get("quiet"):
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            work(**{k: v for k, v in values.items() if f"--{k}" not in RENAMED_OPTIONS})

    return command
