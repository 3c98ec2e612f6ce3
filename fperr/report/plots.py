"""Figures of a report: data frame in, matplotlib Figure out; nothing is measured here."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

Colour = tuple[float, float, float]
# one colour for a loss or a stage, everywhere (seaborn's colour-blind-safe palette)
_LOSSES = ("ce", "mifpe", "tmifpe", "stable_ce", "cw", "dlr", "mifpe_shifted", "tmifpe_shifted")
_STAGES = ("cast", "forward", "loss", "backward")


@dataclass(frozen=True)
class Plots:
    """The plots of one report. Scenarios that differ by the sign of the gradient are drawn once.

    Attributes:
        frame: its rows.
    """

    frame: pd.DataFrame

    def relative_error(self) -> Figure:
        """The relative error of the gradient, by format and loss, one panel for each scenario."""
        return _strips(
            self._by_scenario("delta"),
            "Error of the computed gradient",
            "relative error δ = ‖ĝ − g‖₂ / ‖g‖₂",
            log=True,
        )

    def sign_errors(self) -> Figure:
        """The share of wrong signs, by format and loss, one panel for each scenario."""
        return _strips(
            self._by_scenario("sign_error_rate"),
            "Signs of the gradient that are wrong (an ℓ∞ attack follows the signs)",
            "share of wrong signs",
            log=False,
        )

    def stages(self) -> Figure:
        """Where the error arises: the size of each stage, by format, one panel for each loss."""
        independent = self.frame[~self.frame["is_sign_twin"]]
        columns = [f"stage_{name}" for name in _STAGES]
        long = independent.melt(["loss", "format"], columns, "hue", "value")
        long["hue"] = long["hue"].str.removeprefix("stage_")
        return _strips(
            long.rename(columns={"loss": "panel"}),
            "Where the error of the gradient arises",
            "‖stage‖₂ / ‖g‖₂",
            log=True,
            legend="stage",
        )

    def _by_scenario(self, column: str) -> pd.DataFrame:
        frame = self.frame
        twins = set(frame[frame["is_sign_twin"]]["scenario"])
        shown = frame[~frame["is_sign_twin"]]
        titles = {name: name.replace("_", ", ") for name in shown["scenario"].unique()}
        if twins:
            titles = {name: f"{t}\n(and its targeted twin)" for name, t in titles.items()}
        return pd.DataFrame(
            {
                "panel": shown["scenario"].map(titles),
                "format": shown["format"],
                "hue": shown["loss"],
                "value": shown[column],
            }
        )


def _strips(
    frame: pd.DataFrame, title: str, label: str, *, log: bool, legend: str = "loss"
) -> Figure:
    """One dot for each row: columns `panel`, `format`, `hue`, `value`."""
    shown = frame[frame["value"].notna() & ((frame["value"] > 0) | (not log))]
    panels, formats = (list(dict.fromkeys(shown[name])) for name in ("panel", "format"))
    hues = _ordered(shown["hue"])
    count = max(1, len(panels))
    figure = Figure(figsize=(3.6 * count + 1.4, 3.8), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=False):
        sns.stripplot(
            shown[shown["panel"] == panel],
            x="format",
            y="value",
            hue="hue",
            order=formats,
            hue_order=hues,
            palette=_colours(hues),
            dodge=True,
            jitter=0.2,
            size=4,
            alpha=0.7,
            log_scale=(False, log),
            legend="full" if axis is axes[-1] else False,
            ax=axis,
        )
        axis.set(title=panel, xlabel="", ylabel=label)
        axis.grid(axis="y", alpha=0.3)
    if panels:
        axes[-1].legend(title=legend, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.suptitle(title)
    return figure


def _ordered(names: pd.Series) -> list[str]:
    found = list(dict.fromkeys(names))
    known = [name for name in (*_LOSSES, *_STAGES) if name in found]
    return known + [name for name in found if name not in known]


def _colours(names: Sequence[str]) -> dict[str, Colour]:
    palette = sns.color_palette("colorblind", 10)
    family = _STAGES if set(names) <= set(_STAGES) else _LOSSES
    others = [name for name in names if name not in family]
    places = {name: i for i, name in enumerate((*family, *others))}
    return {name: palette[places[name] % 10] for name in names}
