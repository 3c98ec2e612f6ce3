"""A test of the assumption behind maximising G: |g(t)| is G(t) times a constant of the sample.

Because g = c sum_i p_i grad(z_i - z_l), |g| is proportional to G = c (1 - p_l) if the gradients of
the logit differences all have the same length and direction, or if a single class dominates. At a
fixed input these gradients do not depend on t. Whether they are alike for all i depends on the
network, and is measured here.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fperr.caller_state import in_neutral_state
from fperr.theory.scaling import log2_G, margin, t_star
from fperr.theory.scenarios import ranked

_LARGEST_T = 30.0
_POINTS = 60  # values of T, from 0.01 on, equidistant in log T


@in_neutral_state
def lengths(model: nn.Module, x: Tensor) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the gradients of the logit differences, and the size of g(t), in float64.

    The class l of the loss is the prediction pi_1: the scenario of an untargeted attack that has
    not succeeded. Samples whose two largest logits are equal are left out.

    Args:
        model: Network in evaluation mode, of any floating-point dtype. It is not changed.
        x: Inputs (batch, *shape).

    Returns:
        Two frames. The first has a row for each sample and rank i = 2 ... K: `length` is
        |grad(z_i - z_pi1)| divided by its mean over i, and `cosine` is that of the angle between
        this gradient and the one of rank 2. The second has a row for each sample and T: `ratio` is
        |g(T)|/G(T) divided by its value at t*, and `log2_G` is log2(G(T)/G(t*)).
    """
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    by_rank, by_T = [], []
    for sample in range(len(x)):
        leaf = x[sample : sample + 1].double().requires_grad_()
        z = torch.func.functional_call(model, state, (leaf,))
        rows = torch.stack([torch.autograd.grad(k, leaf, retain_graph=True)[0] for k in z[0]])
        z = z.detach()
        delta = margin(z)
        if not float(delta) > 0:
            continue
        order = ranked(z)[0]
        J = rows.flatten(1)[order]
        differences = J[1:] - J[0]
        norms = torch.linalg.vector_norm(differences, dim=1)
        cosines = torch.nn.functional.cosine_similarity(differences, differences[:1], dim=1)
        by_rank.append(
            pd.DataFrame(
                {
                    "sample": sample,
                    "rank": range(2, len(order) + 1),
                    "length": (norms / norms.mean()).tolist(),
                    "cosine": cosines.tolist(),
                }
            )
        )
        T = torch.logspace(-2, math.log10(_LARGEST_T), _POINTS, dtype=torch.float64)
        c = torch.cat([T, t_star(z)]) / delta  # the last point is t*
        label = order[:1].expand(len(c))
        p = (c[:, None] * (z - z.amax())).softmax(1)[:, order]
        size = log2_G(z.expand(len(c), -1), label, c)
        g = torch.linalg.vector_norm((c[:, None] * p[:, 1:]) @ differences, dim=1)
        ratio = (g.log2() - size - (g[-1].log2() - size[-1])).exp2()
        by_T.append(
            pd.DataFrame(
                {
                    "sample": sample,
                    "T": T.tolist(),
                    "ratio": ratio[:-1].tolist(),
                    "log2_G": (size - size[-1])[:-1].tolist(),
                }
            )
        )
    return pd.concat(by_rank, ignore_index=True), pd.concat(by_T, ignore_index=True)


def summary(frames_by_network: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> pd.DataFrame:
    """Summarise, for each network, how unlike the lengths are, and how |g|/G varies with T.

    Args:
        frames_by_network: The two frames that `lengths` returns, by name of the network.

    Returns:
        A row for each network, with the columns `longest/shortest` (median over the samples of the
        largest length divided by the smallest), `cosine` (median, from rank 3 on) and, for T = 0.1,
        4 and 16, the median over the samples of |g|/G at T divided by |g|/G at t*.
    """
    lines = []
    for name, (by_rank, by_T) in frames_by_network.items():
        spread = by_rank.groupby("sample")["length"].agg(lambda v: v.max() / v.min())
        # for each T, the rows of the grid point nearest to it: as many as there are samples
        ratio_by_T = {
            f"|g|/G at T = {T:g}": by_T.iloc[(by_T["T"] - T).abs().argsort(kind="stable")][
                : by_T["sample"].nunique()
            ]["ratio"].median()
            for T in (0.1, 4.0, 16.0)
        }
        lines.append(
            {
                "network": name,
                "longest/shortest": spread.median(),
                "cosine": by_rank.loc[by_rank["rank"] > 2, "cosine"].median(),
                **ratio_by_T,
            }
        )
    return pd.DataFrame(lines)


@in_neutral_state
def figure(frames_by_network: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Figure:
    """Draw the lengths by rank on the left, and |g(T)|/G(T) against T on the right."""
    plot = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = plot.subplots(1, 2)
    palette = dict(
        zip(frames_by_network, sns.color_palette("colorblind", len(frames_by_network)), strict=True)
    )
    ranks = pd.concat(
        [r.assign(network=n) for n, (r, _) in frames_by_network.items()], ignore_index=True
    )
    sns.pointplot(
        ranks, x="rank", y="length", hue="network", palette=palette, estimator="median",
        errorbar=("pi", 50), dodge=0.5 if len(frames_by_network) > 1 else False, linestyle="none",
        markersize=4, err_kws={"linewidth": 1.5}, legend=False, ax=left,
    )  # fmt: skip
    left.axhline(1.0, color="black", linewidth=1)
    left.set(
        title="Lengths across classes (alike: all on the line)",
        xlabel="rank i of the class by its logit",
        ylabel="‖∇(z_i − z_π1)‖₂ over its mean across i,\nmedian and quartiles over images",
    )
    left.set_ylim(bottom=0)
    for name, (_, by_T) in frames_by_network.items():
        quartiles = by_T.groupby("T")["ratio"].quantile([0.25, 0.5, 0.75]).unstack()
        T = quartiles.index.to_numpy(dtype=np.float64)
        right.plot(T, quartiles[0.5], color=palette[name], label=name)
        right.fill_between(T, quartiles[0.25], quartiles[0.75], color=palette[name], alpha=0.2)
    right.axhline(1.0, color="black", linewidth=1)
    right.set(
        xscale="log",
        title="‖g(T)‖ over G(T), 1 at t* (assumed: constant)",
        xlabel="T",
        ylabel="median and quartiles over images",
    )
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    plot.suptitle("Is the gradient's size G times a constant?")
    return plot
