"""Figures of a recorded attack, drawn from its tables."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fperr.caller_state import in_neutral_state
from fperr.formats import FORMATS
from fperr.report.style import OWN, colours, dashes, legend, ordered

TableReader = Callable[[list[str] | None], pd.DataFrame]
_FLOOR = 1e-18  # below float64's last place: drawn there, 0 among them
_NETWORK_ALONE = f"{OWN}, without\nits unknown loss's error"
_STATISTIC = "median and quartiles of the samples"
_QUARTILES = ("pi", 50)  # seaborn's name of the range between the quartiles


@dataclass(frozen=True)
class TracePlots:
    """The plots of one trace. Lines are medians over the samples, bands lie between quartiles.

    Attributes:
        steps: Function that reads the table of steps, or some of its columns.
        errors: Function that reads the table of errors, or some of its columns.
    """

    steps: TableReader
    errors: TableReader

    @in_neutral_state
    def relative_error(self) -> Figure:
        """The relative error of the gradient along the attack, by loss, a panel for each format.

        Where the attack's loss is unknown, a separate line holds the error of the network alone.
        """
        frame = self.errors(["step", "loss", "format", "is_own", "delta", "network_delta"])
        without_loss = frame["delta"].isna() & frame["network_delta"].notna()
        frame = frame.assign(
            hue=frame["loss"].where(~frame["is_own"], OWN).mask(without_loss, _NETWORK_ALONE),
            delta=frame["delta"].where(~without_loss, frame["network_delta"]),
        )
        present = list(dict.fromkeys(frame["format"]))
        formats = [name for name in FORMATS if name in present]
        formats += [name for name in present if name not in FORMATS]  # of the user's own
        hues = ordered(frame["hue"])
        width = 3.4 * max(1, len(formats)) + 2.4
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        axes = figure.subplots(1, max(1, len(formats)), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, formats, strict=False):
            rows = frame[(frame["format"] == name) & frame["delta"].notna()]
            sns.lineplot(
                rows.assign(delta=rows["delta"].clip(lower=_FLOOR)),
                x="step",
                y="delta",
                hue="hue",
                hue_order=hues,
                palette=colours(hues),
                style="hue",
                style_order=hues,
                dashes=dashes(hues),
                estimator="median",
                errorbar=_QUARTILES,
                legend=False,
                ax=axis,
            )
            axis.set(
                yscale="log",
                ylim=(_FLOOR / 2, 1e2),
                title=name,
                xlabel="gradient step",
                ylabel="relative error δ = ‖ĝ − g‖₂ / ‖g‖₂",
            )
            axis.grid(alpha=0.3)
        legend(figure, hues, "loss", lines=True)
        title = f"Error of the gradient along the attack\n({_STATISTIC})"
        figure.suptitle(title, x=0.02, ha="left", fontsize="medium")  # beside the legend
        return figure

    @in_neutral_state
    def margins(self) -> Figure:
        """z_y − max z_i of the samples along the attack: below 0 it has succeeded."""
        figure, axis = self._line("label_margin", "$z_y - \\max_{i≠y} z_i$", "Margin of the label")
        axis.axhline(0, color="black", linewidth=1)
        axis.set_yscale("symlog")
        return figure

    @in_neutral_state
    def t_star(self) -> Figure:
        """T*, the T that maximises G, along the attack."""
        return self._line("t_star", "t*", "Optimal temperature")[0]

    @in_neutral_state
    def zeros(self) -> Figure:
        """The share of components of dL/dx that are exactly zero."""
        figure, axis = self._line("zero_share", "share of components", "Zeros of the gradient")
        axis.set_ylim(-0.04, 1.04)
        return figure

    def _line(self, column: str, label: str, title: str) -> tuple[Figure, Axes]:
        frame = self.steps(["step", column])
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axis = figure.subplots()
        sns.lineplot(
            frame[frame[column].notna()],
            x="step",
            y=column,
            estimator="median",
            errorbar=_QUARTILES,
            ax=axis,
        )
        axis.set(xlabel="gradient step", ylabel=label, title=f"{title}\n({_STATISTIC})")
        axis.grid(alpha=0.3)
        return figure, axis
