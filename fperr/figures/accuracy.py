"""Robust accuracy by floating-point format and by step, and the label's margin after attacks."""

from typing import cast

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, ScalarFormatter

from fperr.figures.attacks import HALF, LOSSES, MORE_LOSSES, STEPS, attack_outcomes, robust_counts
from fperr.figures.panels import by_network
from fperr.figures.study import Study, Subject
from fperr.report.style import CLEAN, colours, dashes, legend, ordered
from fperr.shares import wilson_interval
from fperr.vocabulary import AttackFormat

_ARITHMETICS: tuple[AttackFormat, ...] = ("float16", "float32", "float64", "exact")
_MARGIN_TICKS = [sign * 10.0**k for sign in (-1, 1) for k in (1, 3, 5)] + [0.0]


def precision_frame(study: Study) -> pd.DataFrame:
    """Count robust images by arithmetic: columns network, loss, arithmetic, n, robust, unjudged."""

    def counts(subject: Subject, loss: str, arithmetic: AttackFormat) -> dict[str, int]:
        # without rounding the two are the same function: an attack that takes long, once
        is_the_same = arithmetic == "exact" and loss == "stable_ce"
        loss = "ce" if is_the_same else loss
        return robust_counts(attack_outcomes(study, subject, loss=loss, format=arithmetic))

    return pd.DataFrame(
        {"network": subject.name, "loss": loss, "arithmetic": arithmetic}
        | counts(subject, loss, arithmetic)
        for subject in study.at_most(HALF).subjects
        for loss in LOSSES
        for arithmetic in _ARITHMETICS
    )


def precision(frame: pd.DataFrame) -> Figure:
    """Draw robust accuracy by the arithmetic in which the attack runs the network.

    Lines are Wilson's 95 % intervals. "exact": the attack follows exact gradients, and the network
    in float32 says whether it has succeeded.
    """
    figure, panel_rows = by_network(frame)
    hues = ordered(frame["loss"])
    arithmetics = list(dict.fromkeys(frame["arithmetic"]))
    for axis, rows in panel_rows:
        sns.barplot(
            rows.assign(share=rows["robust"] / rows["n"]),
            x="arithmetic",
            y="share",
            hue="loss",
            order=arithmetics,
            hue_order=hues,
            palette=colours(hues),
            errorbar=None,
            saturation=1,
            legend=False,
            ax=axis,
        )
        for bars, loss in zip(axis.containers, hues, strict=True):
            _draw_intervals(axis, cast(BarContainer, bars), rows[rows["loss"] == loss], arithmetics)
        axis.set(ylim=(0, 1), xlabel="arithmetic of network and gradient", ylabel="robust accuracy")
    legend(figure, hues, "loss")
    figure.suptitle(
        f"Robust accuracy by arithmetic (PGD, {STEPS} steps; lines: 95 % intervals after Wilson)\n"
        "exact: exact gradients, success judged in float32"
    )
    return figure


def _draw_intervals(
    axis: Axes, bars: BarContainer, rows: pd.DataFrame, arithmetics: list[str]
) -> None:
    """Draw Wilson's interval on each bar of a loss; bars stand in the order of `arithmetics`."""
    counts = rows.set_index("arithmetic").loc[arithmetics, ["robust", "n"]]
    intervals = [wilson_interval(int(robust), int(n)) for robust, n in counts.to_numpy()]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    axis.vlines(centres, *zip(*intervals, strict=True), color="black", linewidth=0.8)


def convergence_frame(study: Study) -> pd.DataFrame:
    """Count robust images after each step: columns network, loss, step, n, robust, unjudged."""
    frames = []
    for subject in study.subjects:
        for loss in MORE_LOSSES:
            outcome = attack_outcomes(study, subject, loss=loss)
            first = outcome.loc[outcome["is_judged"], "first_success_step"].to_numpy()
            # `first` is 0 for an image that is misclassified clean, 1 for one that the start
            # fools, 1 + i for one that step i fools, -1 for one that withstands. So after step s
            # (0: the start), those with 0 <= first <= s + 1 have fallen.
            steps = np.arange(STEPS + 1)
            fallen = ((first[None, :] >= 0) & (first[None, :] <= steps[:, None] + 1)).sum(1)
            curve = pd.DataFrame({"step": steps, "n": len(outcome), "robust": len(first) - fallen})
            unjudged = len(outcome) - len(first)
            frames.append(curve.assign(network=subject.name, loss=loss, unjudged=unjudged))
    return pd.concat(frames, ignore_index=True)


def convergence(frame: pd.DataFrame) -> Figure:
    """Draw robust accuracy after each step, a panel for each network."""
    figure, panel_rows = by_network(frame)
    hues = ordered(frame["loss"])
    for axis, rows in panel_rows:
        sns.lineplot(
            rows.assign(share=rows["robust"] / rows["n"]),
            x="step",
            y="share",
            hue="loss",
            hue_order=hues,
            palette=colours(hues),
            style="loss",
            style_order=hues,
            dashes=dashes(hues),
            drawstyle="steps-post",
            legend=False,
            ax=axis,
        )
        axis.set_xscale("symlog", linthresh=10)
        axis.set(xlabel="steps", ylabel="robust accuracy", xlim=(0, STEPS), ylim=(0, 1))
        axis.xaxis.set_major_locator(FixedLocator([0, 5, 10, 30, 100]))
        axis.xaxis.set_major_formatter(ScalarFormatter())
    legend(figure, hues, "loss", lines=True)
    figure.suptitle("Robust accuracy by step (PGD, float32)")
    return figure


def density_frame(study: Study) -> pd.DataFrame:
    """Collect the smallest margins of the label: columns network, loss, label_margin, n.

    `label_margin` is the smallest z_y - max_{i != y} z_i that the attack met. Samples on which
    the attack has succeeded are attacked further.
    """
    frames = []
    for subject in study.subjects:
        for loss in (CLEAN, "ce", "mifpe"):
            if loss == CLEAN:
                labels, z = subject.images.y.cpu()[:, None], subject.logits.double()
                others = z.scatter(1, labels, -torch.inf).amax(1)
                margin = (z.gather(1, labels)[:, 0] - others).numpy()
            else:
                outcome = attack_outcomes(study, subject, loss=loss, freeze=False)
                margin = outcome["best_margin"].to_numpy()
            margins = pd.DataFrame({"label_margin": margin, "network": subject.name, "loss": loss})
            frames.append(margins.assign(n=subject.n))
    return pd.concat(frames, ignore_index=True)


def density(frame: pd.DataFrame) -> Figure:
    """Draw the distribution of the label's margins; left of 0 the attack has succeeded."""
    figure, panel_rows = by_network(frame)
    hues = list(dict.fromkeys(frame["loss"]))
    for axis, rows in panel_rows:
        sns.ecdfplot(
            rows, x="label_margin", hue="loss", hue_order=hues, palette=colours(hues), ax=axis,
            legend=False,
        )  # fmt: skip
        axis.axvline(0, color="black", linewidth=1)
        axis.set_xscale("symlog")
        axis.xaxis.set_major_locator(FixedLocator(_MARGIN_TICKS))
        axis.set(xlabel="smallest $z_y - \\max_{i≠y} z_i$ met", ylabel="share of images below")
    legend(figure, hues, "loss")
    figure.suptitle("Margin of the label before and after attacks (PGD, float32)")
    return figure
