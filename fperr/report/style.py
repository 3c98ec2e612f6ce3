"""The style of every figure: a loss has the same colour in all of them."""

import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fperr.losses import LOSSES_BY_NAME

Colour = tuple[float, float, float]
_DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (4, 1.5),
    (1, 1),
    (3, 1.25, 1.5, 1.25),
    (5, 1, 1, 1),
    (3, 1.25, 1.25, 1.25, 1.25, 1.25),
    (4, 1, 4, 1, 1, 1),
)
OWN = "the attack's own"  # gradient, beside those of losses
CLEAN = "clean"  # images, beside attacked ones
_SPECIAL = {OWN: (0.0, 0.0, 0.0), CLEAN: (0.5, 0.5, 0.5)}
_ARITHMETICS = "float16", "bfloat16", "tf32", "float32", "float64", "exact"
STAGES = ("cast", "constants", "forward", "loss", "backward")
_STAGE_COLOURS = ("cast", "forward", "loss", "backward", "constants")  # in seaborn's order


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
    handles = _handles(hues, lines=lines)
    figure.legend(handles=handles, title=title, loc="outside right upper", frameon=False)


def legend_below(figure: Figure, hues: list[str], title: str) -> None:
    """Add a legend below the panels, in lines: for each name a dot in its colour.

    Args:
        figure: Figure with a layout that makes room for the legend.
        hues: Names in the order of drawing.
        title: Title of the legend.
    """
    columns = min(max(1, len(hues)), max(1, int(figure.get_figwidth() / 1.7)))
    handles = _handles(hues, lines=False)
    figure.legend(
        handles=handles, title=title, loc="outside lower center", ncols=columns, frameon=False
    )


def display_name(name: str) -> str:
    """The name of a loss in figures; other names as they are."""
    return LOSSES_BY_NAME[name].display_name if name in LOSSES_BY_NAME else name


def _handles(hues: list[str], *, lines: bool) -> list[Line2D]:
    handles = []
    for name, colour in colours(hues).items():
        label = display_name(name)
        if lines:
            dash = dashes(hues)[name] or (None, None)
            handles.append(Line2D([], [], color=colour, label=label, dashes=dash))
        else:
            handles.append(Line2D([], [], color=colour, label=label, marker="o", linestyle=""))
    return handles


def dashes(names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """A dash pattern for each name, so that lines differ without colours, too."""
    return {name: _DASHES[i % len(_DASHES)] for i, name in enumerate(names)}


def ordered(names: pd.Series) -> list[str]:
    """The distinct names: losses, stages and formats in their usual order, then all other names."""
    distinct = list(dict.fromkeys(names))
    usual = [name for name in (*LOSSES_BY_NAME, *STAGES, *_ARITHMETICS) if name in distinct]
    return usual + [name for name in distinct if name not in usual]


def colours(names: Sequence[str]) -> dict[str, Colour]:
    """A colour for each of the names: seaborn's colour-blind-safe palette, viridis for formats."""
    if set(names) <= set(_ARITHMETICS):  # an order: from dark to light
        shades = sns.color_palette("viridis", len(_ARITHMETICS) + 1)
        return {name: shades[_ARITHMETICS.index(name)] for name in names}
    if set(names) <= set(STAGES):
        palette = sns.color_palette("colorblind", len(STAGES))
        return {name: palette[_STAGE_COLOURS.index(name)] for name in names}
    of_losses = {name: to_rgb(loss.colour) for name, loss in LOSSES_BY_NAME.items()}
    unknown = [name for name in names if name not in of_losses | _SPECIAL]
    others = dict(zip(unknown, sns.color_palette("husl", len(unknown)), strict=True))
    every = of_losses | others | _SPECIAL
    return {name: every[name] for name in names}
