"""What attacks reach: by arithmetic, by step, and how far beyond the border they push."""

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, ScalarFormatter

from fperr.figures.attacks import HALF, LOSSES, MORE_LOSSES, STEPS, attacked, withstood
from fperr.figures.panels import by_network
from fperr.figures.study import Study
from fperr.report.style import CLEAN, colours, dashes, legend, ordered
from fperr.vocabulary import FormatName

_ARITHMETICS: tuple[FormatName, ...] = ("float16", "float32", "float64")
_TICKS = [sign * 10.0**k for sign in (-1, 1) for k in (1, 3, 5)] + [0.0]  # of margins


def precision_frame(study: Study) -> pd.DataFrame:
    """Columns network, loss, arithmetic, n, robust, unjudged."""
    return pd.DataFrame(
        {"network": subject.name, "loss": loss, "arithmetic": arithmetic}
        | withstood(attacked(study, subject, loss=loss, format=arithmetic))
        for subject in study.at_most(HALF).subjects
        for loss in LOSSES
        for arithmetic in _ARITHMETICS
    )


def precision(frame: pd.DataFrame) -> Figure:
    """Robust accuracy by the arithmetic that the attack runs the network in, by network."""
    figure, parts = by_network(frame)
    hues = ordered(frame["loss"])
    for axis, rows in parts:
        sns.barplot(
            rows.assign(share=rows["robust"] / rows["n"]),
            x="arithmetic",
            y="share",
            hue="loss",
            order=list(dict.fromkeys(frame["arithmetic"])),
            hue_order=hues,
            palette=colours(hues),
            errorbar=None,
            saturation=1,
            legend=False,
            ax=axis,
        )
        axis.set(ylim=(0, 1), xlabel="arithmetic of network and gradient", ylabel="robust accuracy")
    legend(figure, hues, "loss")
    figure.suptitle(f"Robust accuracy by arithmetic (PGD, {STEPS} steps)")
    return figure


def convergence_frame(study: Study) -> pd.DataFrame:
    """Columns network, loss, step, n, robust, unjudged: after that many steps."""
    parts = []
    for subject in study.subjects:
        for loss in MORE_LOSSES:
            frame = attacked(study, subject, loss=loss)
            first = frame.loc[frame["is_judged"], "first_success_step"].to_numpy()
            steps = np.arange(STEPS + 1)  # 0: the start; clean errors are 0 in `first`
            fallen = ((first[None, :] >= 0) & (first[None, :] <= steps[:, None] + 1)).sum(1)
            part = pd.DataFrame({"step": steps, "n": len(frame), "robust": len(first) - fallen})
            unjudged = len(frame) - len(first)
            parts.append(part.assign(network=subject.name, loss=loss, unjudged=unjudged))
    return pd.concat(parts, ignore_index=True)


def convergence(frame: pd.DataFrame) -> Figure:
    """Robust accuracy after each step, a panel for each network."""
    figure, parts = by_network(frame)
    hues = ordered(frame["loss"])
    for axis, rows in parts:
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
    """Columns network, loss, label_margin (the smallest z_y - max z_i on the way), n.

    Samples that have succeeded go on.
    """
    parts = []
    for subject in study.subjects:
        for loss in (CLEAN, "ce", "mifpe"):
            if loss == CLEAN:
                images, z = subject.images, subject.logits.double()
                mine = z.gather(1, images.y[:, None])[:, 0]
                margin = (mine - z.scatter(1, images.y[:, None], -torch.inf).amax(1)).numpy()
            else:
                found = attacked(study, subject, loss=loss, freeze=False)
                margin = found["best_margin"].to_numpy()
            part = pd.DataFrame({"label_margin": margin, "network": subject.name, "loss": loss})
            parts.append(part.assign(n=subject.n))
    return pd.concat(parts, ignore_index=True)


def density(frame: pd.DataFrame) -> Figure:
    """The margin of the label after the attacks; left of 0 they have succeeded."""
    figure, parts = by_network(frame)
    hues = list(dict.fromkeys(frame["loss"]))
    for axis, rows in parts:
        sns.ecdfplot(
            rows, x="label_margin", hue="loss", hue_order=hues, palette=colours(hues), ax=axis,
            legend=False,
        )  # fmt: skip
        axis.axvline(0, color="black", linewidth=1)
        axis.set_xscale("symlog")
        axis.xaxis.set_major_locator(FixedLocator(_TICKS))
        axis.set(xlabel="smallest $z_y - \\max_{i≠y} z_i$ met", ylabel="share of images below")
    legend(figure, hues, "loss")
    figure.suptitle("Margin of the label before and after attacks (PGD, float32)")
    return figure
