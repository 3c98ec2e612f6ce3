"""Draws the figures of a report: data frame in, matplotlib Figure out."""

import math
from dataclasses import dataclass

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fperr.caller_state import in_neutral_state
from fperr.report.style import STAGES, colours, legend, ordered
from fperr.report.verdict import only_ties

# the same scale in every figure; errors below float64's unit roundoff (1e-16) are of no interest
_LOG_LIMITS = (1e-18, 1e2)  # the upper limit is raised for larger errors
_SHARE_LIMITS = (-0.04, 1.04)  # [0, 1] with room for the dots
_BOUND_LIMITS = (1e-20, 1e4)


@dataclass(frozen=True)
class Plots:
    """The figures of one report. Scenarios that differ by the sign of the gradient are drawn once.

    Attributes:
        frame: Rows of the report.
    """

    frame: pd.DataFrame

    @in_neutral_state
    def relative_error(self) -> Figure:
        """The relative error of the gradient, by format and loss, one panel for each scenario."""
        return _strips(
            self._by_scenario("delta"),
            "Error of the computed gradient",
            "relative error δ = ‖ĝ − g‖₂ / ‖g‖₂",
            log=True,
        )

    @in_neutral_state
    def sign_errors(self) -> Figure:
        """The share of wrong signs, by format and loss, one panel for each scenario."""
        return _strips(
            self._by_scenario("sign_error_rate"),
            "Wrong signs of the gradient",
            "share of wrong signs",
            log=False,
        )

    @in_neutral_state
    def stages(self) -> Figure:
        """The size of each stage of the error, by format, one panel for each loss."""
        independent = self.frame[~self.frame["is_sign_twin"]]
        columns = [f"stage_{name}" for name in STAGES]
        long = independent.melt(["network", "loss", "format"], columns, "hue", "value")
        long["hue"] = long["hue"].str.removeprefix("stage_")
        return _strips(
            long.rename(columns={"loss": "panel"}),
            "Where the error of the gradient arises",
            "‖stage‖₂ / ‖g‖₂",
            log=True,
            legend_title="stage",
        )

    @in_neutral_state
    def bounds(self) -> Figure:
        """The loss stage against the proved bound on it, one panel for each format.

        Errors below the scale, 0 among them, are drawn at its lower end.
        """
        bounded = self.frame[~self.frame["is_sign_twin"] & self.frame["stage_loss_bound"].notna()]
        bounded = bounded[bounded["stage_loss"].notna()]
        names = list(dict.fromkeys(bounded["format"]))
        width = 3.2 * max(1, len(names)) + 1.6
        figure = Figure(figsize=(width, 3.9), layout="constrained")
        hues = ordered(bounded["loss"])
        for axis, name in zip(
            figure.subplots(1, max(1, len(names)), squeeze=False)[0], names, strict=False
        ):
            rows = bounded[bounded["format"] == name]
            values = rows[["stage_loss", "stage_loss_bound"]].clip(*_BOUND_LIMITS)
            sns.scatterplot(
                x=values["stage_loss_bound"],
                y=values["stage_loss"],
                hue=rows["loss"],
                hue_order=hues,
                palette=colours(hues),
                s=14,
                alpha=0.7,
                linewidth=0,
                legend=False,
                ax=axis,
            )
            above = int((rows["stage_loss"] > rows["stage_loss_bound"]).sum())
            axis.plot(_BOUND_LIMITS, _BOUND_LIMITS, color="black", linewidth=1)
            axis.set(
                xscale="log",
                yscale="log",
                xlim=_BOUND_LIMITS,
                ylim=_BOUND_LIMITS,
                title=f"{name}: {above} of {len(rows)} above",
                xlabel="proved bound",
                ylabel="loss stage ‖J̃ᵀ(v̂ − v)‖₂ / ‖g‖₂",
            )
            axis.grid(alpha=0.3)
        legend(figure, hues, "loss")
        figure.suptitle("Loss stage against its bound")
        return figure

    def _by_scenario(self, column: str) -> pd.DataFrame:
        """The values of a column, with one panel for each scenario and its sign twin."""
        frame = self.frame
        independent = frame[~frame["is_sign_twin"]]
        copied = set(frame[frame["is_sign_twin"]]["scenario"])
        titles = {}
        for name in independent["scenario"].unique():
            kind, success = name.split("_")
            other = "targeted" if kind == "untargeted" else "untargeted"
            twin = f"{other}_{'unsuccessful' if success == 'successful' else 'successful'}"
            note = f"\n(and {twin.replace('_', ', ')})" if twin in copied else ""
            titles[name] = f"{kind}, {success}{note}"
        return pd.DataFrame(
            {
                "network": independent["network"],
                "panel": independent["scenario"].map(titles),
                "format": independent["format"],
                "is_tie": only_ties(independent),
                "hue": independent["loss"],
                "value": independent[column],
            }
        )


def _strips(
    frame: pd.DataFrame, title: str, label: str, *, log: bool, legend_title: str = "loss"
) -> Figure:
    """A grid of panels, a line for each network, with one dot for each row.

    Args:
        frame: Data frame with the columns `network`, `panel`, `format`, `hue` and `value`, and
            perhaps `is_tie`, whose dots are hollow.
        title: Title of the figure.
        label: Label of the vertical axes.
        log: Use a logarithmic scale; values that are not positive are left out.
        legend_title: Title of the legend.
    """
    drawn = frame[frame["value"].notna() & ((frame["value"] > 0) | (not log))]
    networks, panels, formats = (
        list(dict.fromkeys(drawn[name])) for name in ("network", "panel", "format")
    )
    hues = ordered(drawn["hue"])
    finite = drawn["value"][drawn["value"] < math.inf]
    top = max(_LOG_LIMITS[1], 3 * finite.max()) if len(finite) else _LOG_LIMITS[1]
    limits = (_LOG_LIMITS[0], top) if log else _SHARE_LIMITS
    lines, columns = max(1, len(networks)), max(1, len(panels))
    figure = Figure(figsize=(3.6 * columns + 1.4, 3.1 * lines + 0.7), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, network in zip(grid, networks, strict=False):
        for axis, panel in zip(axes, panels, strict=True):
            of_panel = drawn[(drawn["panel"] == panel) & (drawn["network"] == network)]
            is_tie = of_panel["is_tie"] if "is_tie" in of_panel else of_panel["value"].isna()
            for rows, marker, size in (
                (of_panel[~is_tie], "o", 4),
                (of_panel[is_tie], "$\\circ$", 6),  # hollow
            ):
                sns.stripplot(
                    rows,
                    x="format",
                    y="value",
                    hue="hue",
                    order=formats,
                    hue_order=hues,
                    palette=colours(hues),
                    dodge=True,
                    jitter=0.2,
                    size=size,
                    marker=marker,
                    alpha=0.7,
                    log_scale=(False, log),
                    legend=False,
                    ax=axis,
                )
            heading = f"{network}\n{panel}" if len(networks) > 1 else panel
            axis.set_title(heading, parse_math=False)  # a network's name may hold dollars
            axis.set(xlabel="", ylabel=label)
            axis.grid(axis="y", alpha=0.3)
            axis.set_ylim(*limits)
    legend(figure, hues, legend_title)
    figure.suptitle(title)
    return figure
