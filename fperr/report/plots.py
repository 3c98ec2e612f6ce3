"""Figures of a report: data frame in, matplotlib Figure out; nothing is computed here."""

from dataclasses import dataclass

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

# one colour for a loss, everywhere (seaborn's colour-blind-safe palette); others follow in order
_LOSS_ORDER = ("ce", "mifpe", "tmifpe", "stable_ce", "cw", "dlr", "mifpe_shifted", "tmifpe_shifted")
_STAGES = ("cast", "forward", "loss", "backward")


@dataclass(frozen=True)
class Plots:
    """The plots of one report.

    Attributes:
        frame: its rows.
    """

    frame: pd.DataFrame

    def relative_error(self) -> Figure:
        """The relative error of the gradient, by format and loss, one panel for each scenario."""
        return self._strips(
            "delta", "relative error δ = ‖ĝ − g‖₂ / ‖g‖₂", log=True, title="Error of the gradient"
        )

    def sign_errors(self) -> Figure:
        """The share of wrong signs, by format and loss, one panel for each scenario."""
        return self._strips(
            "sign_error_rate",
            "share of components with a wrong sign",
            log=False,
            title="Signs that an ℓ∞ attack gets wrong",
        )

    def stages(self) -> Figure:
        """Where the error arises: the size of each stage, by format and loss."""
        columns = [f"stage_{name}" for name in _STAGES]
        long = self.frame.melt(["loss", "format"], columns, "stage", "size").dropna()
        long = long[long["size"] > 0]
        long["stage"] = long["stage"].str.removeprefix("stage_")
        losses = _ordered(long["loss"])
        formats = list(dict.fromkeys(long["format"]))
        figure = Figure(figsize=(3.2 * len(losses) + 1, 3.4), layout="constrained")
        axes = figure.subplots(1, len(losses), sharey=True, squeeze=False)[0]
        for axis, loss in zip(axes, losses, strict=True):
            sns.boxplot(
                long[long["loss"] == loss],
                x="format",
                y="size",
                hue="stage",
                order=formats,
                hue_order=_STAGES,
                palette="colorblind",
                log_scale=(False, True),
                fliersize=2,
                linewidth=0.8,
                ax=axis,
                legend="full" if axis is axes[-1] else False,
            )
            axis.set(title=loss, xlabel="", ylabel="norm of the stage / ‖g‖₂")
        axes[-1].legend(title="stage", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        figure.suptitle("Where the error of the gradient arises")
        return figure

    def _strips(self, column: str, label: str, *, log: bool, title: str) -> Figure:
        shown = self.frame[self.frame[column].notna()]
        if log:
            shown = shown[shown[column] > 0]
        scenarios = list(dict.fromkeys(shown["scenario"]))
        formats = list(dict.fromkeys(shown["format"]))
        losses = _ordered(shown["loss"])
        figure = Figure(figsize=(3.2 * max(1, len(scenarios)) + 1, 3.4), layout="constrained")
        axes = figure.subplots(1, max(1, len(scenarios)), sharey=True, squeeze=False)[0]
        for axis, scenario in zip(axes, scenarios, strict=False):
            sns.stripplot(
                shown[shown["scenario"] == scenario],
                x="format",
                y=column,
                hue="loss",
                order=formats,
                hue_order=losses,
                palette=_colours(losses),
                dodge=True,
                jitter=0.15,
                size=4,
                alpha=0.7,
                log_scale=(False, log),
                ax=axis,
                legend="full" if axis is axes[-1] else False,
            )
            axis.set(title=scenario.replace("_", ",\n"), xlabel="", ylabel=label)
        if scenarios:
            axes[-1].legend(title="loss", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        figure.suptitle(title)
        return figure


def _ordered(losses: pd.Series) -> list[str]:
    found = list(dict.fromkeys(losses))
    known = [name for name in _LOSS_ORDER if name in found]
    return known + [name for name in found if name not in known]


def _colours(losses: list[str]) -> dict[str, tuple[float, float, float]]:
    palette = sns.color_palette("colorblind", 10)
    others = [name for name in losses if name not in _LOSS_ORDER]
    places = {name: i for i, name in enumerate((*_LOSS_ORDER, *others))}
    return {name: palette[places[name] % 10] for name in losses}
