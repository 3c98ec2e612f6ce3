"""A panel for each network, in rows of three."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLUMNS = 3
_WIDTH, _HEIGHT, _LEGEND_WIDTH = 3.5, 3.2, 1.5  # inches


def panels(names: Sequence[str], *, lines: int | None = None) -> tuple[Figure, list[Axes]]:
    """Make a figure with a titled panel for each name.

    Args:
        names: Titles of the panels.
        lines: Number of rows, filled from the left; None for rows of three.
    """
    count = max(1, len(names))
    rows = math.ceil(count / _COLUMNS) if lines is None else lines
    columns = math.ceil(count / rows)
    size = _WIDTH * columns + _LEGEND_WIDTH, _HEIGHT * rows + 0.5
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(names) :]:
        axis.remove()
    for axis, name in zip(axes, names, strict=False):
        axis.set_title(name, fontsize="medium")
        axis.grid(alpha=0.3)
    return figure, axes[: len(names)]


def by_network(frame: pd.DataFrame) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """Make a panel for each network, and pair it with the network's rows.

    The title says how many images there are (column `n`) and, where an attack could not judge some
    of them, how many those are in the row with the most (column `unjudged`).
    """
    groups = [(str(name), rows) for name, rows in frame.groupby("network", sort=False)]
    titles = [f"{name}, {rows['n'].max()} images{_unjudged(rows)}" for name, rows in groups]
    figure, axes = panels(titles)
    return figure, [(axis, rows) for axis, (_, rows) in zip(axes, groups, strict=True)]


def _unjudged(rows: pd.DataFrame) -> str:
    largest = int(rows["unjudged"].max()) if "unjudged" in rows else 0
    return f"\n(up to {largest} not judged)" if largest else ""
