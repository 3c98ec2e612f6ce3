"""Tables, lines and progress: for people on a terminal, plain and whole anywhere else."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from tabulate import tabulate

if TYPE_CHECKING:
    import pandas as pd  # takes a second to load, which not every command needs

_COLOURS = {"trustworthy": "green", "do not trust": "red", "cannot tell": "yellow"}


def print_table(frame: "pd.DataFrame", number_format: Callable[[float], str] = str) -> None:
    """Print a frame without its index, and without cutting anything off.

    Args:
        frame: Table to print.
        number_format: Text of a floating-point number, e.g. `"{:.3g}".format`.
    """
    is_number = [dtype.kind in "biufc" for dtype in frame.dtypes]
    cells = [[_cell(value, number_format) for value in row] for row in frame.to_numpy(object)]
    headers = [str(column) for column in frame.columns]
    sides = ["right" if column else "left" for column in is_number]
    if not sys.stdout.isatty():
        text = tabulate(
            cells, headers, tablefmt="plain", disable_numparse=True, colalign=sides
        ) if cells else "  ".join(headers)  # fmt: skip
        typer.echo(text)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header, side in zip(headers, sides, strict=True):
        table.add_column(
            Text(header), justify="right" if side == "right" else "left", overflow="fold"
        )
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)


def print_verdict(start: str, verdict: str) -> None:
    """Print a line that ends with a verdict, in its colour on a terminal."""
    colour = next((c for state, c in _COLOURS.items() if verdict.startswith(state)), "")
    Console().print(Text.assemble(start, (verdict, colour)), soft_wrap=True)


def shows_progress(*, quiet: bool) -> bool:
    """Whether progress is shown: on a terminal only, as a log would get a line for each change."""
    return not quiet and sys.stderr.isatty()


def progress_bar(*, quiet: bool) -> Progress:
    """A progress bar on standard error, with a field `text`."""
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shows_progress(quiet=quiet))


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C and SIGTERM, with which batch systems end commands, raise `KeyboardInterrupt`.

    Yields:
        A check that raises it again, to be called now and then: Python drops an exception that is
        raised while an object is finalised, as those of a Dask client are all the time.
    """
    signals_received: list[int] = []

    def check() -> None:
        if signals_received:
            raise KeyboardInterrupt

    def handle(number: int, _: object) -> None:
        signals_received.append(number)
        check()

    if threading.current_thread() is not threading.main_thread():
        yield check  # Python sets handlers in the main thread only
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] is signal.SIG_IGN:  # as in a shell's background
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, handle)
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _cell(value: object, number_format: Callable[[float], str]) -> str:
    return number_format(value) if isinstance(value, float) else str(value)
