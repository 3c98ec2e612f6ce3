"""The style of every figure: a loss has the same colour in all of them."""

import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Colour = tuple[float, float, float]
_LOSSES = (
    "ce",
    "mifpe",
    "tmifpe",
    "stable_ce",
    "cw",
    "dlr",
    "mifpe_shifted",
    "tmifpe_shifted",
    "pmifpe",
)
_DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (4, 1.5),
    (1, 1),
    (3, 1.25, 1.5, 1.25),
    (5, 1, 1, 1),
    (3, 1.25, 1.25, 1.25, 1.25, 1.25),
    (4, 1, 4, 1, 1, 1),
)
OWN = "the attack's own"  # name of the gradient that an attack used, beside those of losses
CLEAN = "clean"  # name of the accuracy on images that are not attacked
_FIXED = {OWN: (0.0, 0.0, 0.0), CLEAN: (0.5, 0.5, 0.5)}
_ARITHMETICS = "float16", "bfloat16", "tf32", "float32", "float64", "exact"
STAGES = ("cast", "forward", "loss", "backward")


def picture(figure: Figure, **options: Any) -> bytes:
    """A figure as the bytes of an image file.

    Args:
        figure: The figure.
        options: Options of `Figure.savefig`: format (png if not given), dpi, bbox_inches.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, **{"format": "png", **options})
    return buffer.getvalue()


def legend(figure: Figure, hues: list[str], title: str, *, lines: bool = False) -> None:
    """Add a legend beside the panels: for each name a dot in its colour.

    Args:
        figure: Figure with a layout that makes room for the legend.
        hues: Names in the order of drawing.
        title: Title of the legend.
        lines: Draw lines with their `dashes` instead of dots.
    """
    handles = [
        Line2D([], [], color=colour, label=name, dashes=dashes(hues)[name] or (None, None))
        if lines
        else Line2D([], [], color=colour, marker="o", linestyle="", label=name)
        for name, colour in colours(hues).items()
    ]
    figure.legend(handles=handles, title=title, loc="outside right upper", frameon=False)


def dashes(names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """A dash pattern for each name, so that lines differ without colours, too."""
    return {name: _DASHES[i % len(_DASHES)] for i, name in enumerate(names)}


def ordered(names: pd.Series) -> list[str]:
    """The distinct names: losses, stages and formats in their usual order, then all other names."""
    distinct = list(dict.fromkeys(names))
    usual = [name for name in (*_LOSSES, *STAGES, *_ARITHMETICS) if name in distinct]
    return usual + [name for name in distinct if name not in usual]


def colours(names: Sequence[str]) -> dict[str, Colour]:
    """A colour for each name: seaborn's colour-blind-safe palette, and viridis for formats."""
    palette = sns.color_palette("colorblind", 10)
    if set(names) <= set(_ARITHMETICS):  # formats are ordered: from dark to light
        shades = sns.color_palette("viridis", len(_ARITHMETICS) + 1)
        return {name: shades[_ARITHMETICS.index(name)] for name in names}
    family = STAGES if set(names) <= set(STAGES) else _LOSSES
    unfamiliar = [name for name in names if name not in family]
    # a member of the family has the colour of its position in it, whatever else is drawn
    positions = {name: i for i, name in enumerate((*family, *unfamiliar))}
    missing = max(0, len(positions) - len(palette))
    palette = [*palette, *sns.color_palette("husl", missing)]
    by_name = {name: palette[positions[name]] for name in names}
    return by_name | {name: colour for name, colour in _FIXED.items() if name in by_name}
