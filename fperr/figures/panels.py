"""A panel for each network, in rows of three."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_ACROSS = 3
_WIDTH, _HEIGHT, _BESIDE = 3.5, 3.2, 1.5  # inches; beside: the legend


def panels(names: Sequence[str], *, lines: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with as many panels as names, each with its name.

    Args:
        names: titles.
        lines: rows of panels, filled from the left; None: as many as rows of three take.
    """
    count = max(1, len(names))
    high = math.ceil(count / _ACROSS) if lines is None else lines
    wide = math.ceil(count / high)
    size = _WIDTH * wide + _BESIDE, _HEIGHT * high + 0.5
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(high, wide, squeeze=False).flat)
    for axis in axes[len(names) :]:
        axis.remove()
    for axis, name in zip(axes, names, strict=False):
        axis.set_title(name, fontsize="medium")
        axis.grid(alpha=0.3)
    return figure, axes[: len(names)]


def by_network(frame: pd.DataFrame) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A panel for each network and its rows; the title says how many images (column `n`).

    And where some of them could not be judged by an attack (column `unjudged`), how many at most.
    """
    groups = [(str(name), rows) for name, rows in frame.groupby("network", sort=False)]
    titles = [f"{name}, {rows['n'].max()} images{_unjudged(rows)}" for name, rows in groups]
    figure, axes = panels(titles)
    return figure, [(axis, rows) for axis, (_, rows) in zip(axes, groups, strict=True)]


def _unjudged(rows: pd.DataFrame) -> str:
    most = int(rows["unjudged"].max()) if "unjudged" in rows else 0
    return f"\n(up to {most} not judged)" if most else ""
