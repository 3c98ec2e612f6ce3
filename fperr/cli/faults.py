"""The end of a failed command: one line that says what to do, and an exit code."""

import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from fperr.errors import FperrError

FAULT, INTERRUPTED = 2, 130
TRACEBACK = "FPERR_TRACEBACK"
_PACKAGE = Path(__file__).parent.parent
_LONGEST = 600  # letters of another library's message that are shown
# (pattern, replacement): how the errors of the Python API name an argument, and how the command
# line does. The order matters: a later pattern sees what earlier ones have replaced.
ON_COMMAND_LINE = (
    (r"move (?:it|it and x|model and x) there(?: with device='cuda')?, or (use|leave)", r"\1"),
    (r"box=\(lowest, highest\)", "--box=LOW,HIGH"),
    (
        r"logits=, e\.g\. logits=lambda output: output\[0\]",
        "--logits: a name or an index in the output, or a function of the module, e.g. "
        "--logits logits or --logits 0",
    ),
    (r"logits=lambda", "--logits FUNCTION, a function of the module that is lambda"),
    (r"logits=", "--logits "),
    (r"accept_probabilities=True", "--accept-probabilities"),
    (r"certify=True", "--certify"),
    (r"(?<![-\w])(engine|scenarios|method|format)=['\"]?([\w:]+)['\"]?", r"--\1 \2"),
    (r"(?<![-\w])radius=(\S+)", r"--radius \1"),
    (r"(?<![-\w])(box|engine|format|method|norm|scenarios|steps|targets)=(?!\S)", r"--\1"),
    (
        r"\b(accept_probabilities|batch_size|loss_scale)\b",
        lambda match: "--" + match[1].replace("_", "-"),
    ),
    (
        r"^(radius|steps|restarts|targets|digits|losses|formats|scenarios)(?= (must|is|names) )",
        r"--\1",
    ),
)


class Commands(TyperGroup):
    """The commands; Ctrl-C ends them with code 130, and a model cannot end them with another."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            typer.echo("fperr: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from stopped
        except SystemExit as end:
            raise FperrError(
                f"something that was called ended with sys.exit({end.code!r}), {_origin(end)}: "
                "leave that out"
            ) from end


def ended(fault: Exception) -> int:
    """Print a fault to standard error in one line, and return the exit code.

    An error of another library is named with the line that raised it. With the environment
    variable FPERR_TRACEBACK=1, the traceback is printed first.
    """
    if os.environ.get(TRACEBACK):
        traceback.print_exception(fault, file=sys.stderr)
    typer.echo(f"fperr: {one_line(fault)}", err=True)
    return FAULT


def one_line(fault: Exception) -> str:
    """The message of a fault in one line, with arguments named as the commands name them."""
    if isinstance(fault, FperrError) or _is_ours(fault):
        return on_command_line(" ".join(str(fault).split()))
    if isinstance(fault, OSError) and fault.strerror and fault.filename:
        return f"{fault.filename}: {fault.strerror}: give a path that can be used, or make it so"
    text = " ".join(str(fault).split())[:_LONGEST]
    return (
        f"{type(fault).__name__}: {text} (not an error of fperr's own; {_origin(fault)}). Set "
        f"{TRACEBACK}=1 to see where it comes from; if it is not from your model, report that"
    )


def on_command_line(text: str) -> str:
    """Replace the argument names of the Python API in a message by those of the commands."""
    for pattern, words in ON_COMMAND_LINE:
        text = re.sub(pattern, words, text)
    return text


def _is_ours(fault: BaseException) -> bool:
    """Whether a `raise` statement of this package raised the fault.

    A fault that another statement of this package raised is a mistake in it.
    """
    frames = traceback.extract_tb(fault.__traceback__)
    if not frames or _PACKAGE not in Path(frames[-1].filename).parents:
        return False
    return (frames[-1].line or "").startswith("raise")


def _origin(fault: BaseException) -> str:
    """A description of the line that raised the fault."""
    frames = traceback.extract_tb(fault.__traceback__)
    if not frames:
        return "raised nowhere"
    return f"raised in {frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}"
