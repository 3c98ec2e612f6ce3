"""One style for every figure: the same colour for the same loss, everywhere."""

from collections.abc import Sequence

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
OWN = "the attack's own"  # gradient, beside those of losses: black
STAGES = ("cast", "forward", "loss", "backward")


def legend(figure: Figure, hues: list[str], title: str) -> None:
    """The legend beside the panels: a dot in its colour for each of the names."""
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=name)
        for name, colour in colours(hues).items()
    ]
    figure.legend(handles=handles, title=title, loc="outside right upper", frameon=False)


def ordered(names: pd.Series) -> list[str]:
    """The different names: losses and stages in their order, others after them."""
    found = list(dict.fromkeys(names))
    known = [name for name in (*_LOSSES, *STAGES) if name in found]
    return known + [name for name in found if name not in known]


def colours(names: Sequence[str]) -> dict[str, Colour]:
    """A colour (seaborn's colour-blind-safe palette) for each of the names."""
    palette = sns.color_palette("colorblind", 10)
    family = STAGES if set(names) <= set(STAGES) else _LOSSES
    others = [name for name in names if name not in family]
    places = {name: i for i, name in enumerate((*family, *others))}
    found = {name: palette[places[name] % 10] for name in names}
    return found | {OWN: (0.0, 0.0, 0.0)} if OWN in found else found
