"""The outcome of attempts to refute the bounds: a table, sentences, a figure."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fperr.caller_state import in_neutral_state

# columns of the trials that hold error/bound, and how the table calls the bounds
BOUNDS = {
    "ratio": "proved, by component",
    "normwise": "proved, Euclidean norm",
    "paper_u": "papers', ε_max = u",
    "paper_eta": "papers', ε_max = η/2",
    "paper_normal": "papers', ε_max = smallest normal",
}


def table(trials: pd.DataFrame) -> pd.DataFrame:
    """Summarise the trials by bound, format and scenario.

    Args:
        trials: Result of `falsify`.

    Returns:
        Columns `bound`, `format`, `scenario`, `cases`, `violations`, `share` (of violations),
        `largest` and `median` (of error/bound). For the proved bound also `capped` (share of bounds
        that are their cap) and `useless` (share of bounds that reach the gradient's length).
        Medians leave the search out.
    """
    keys = ["format", "scenario"]
    groups = trials.groupby(keys, observed=True)
    drawn = trials[~trials["is_searched"]].groupby(keys, observed=True)
    frames = []
    for column, name in BOUNDS.items():
        columns = groups[column].agg(
            cases="size",
            violations=lambda r: int((r > 1).sum()),
            share=lambda r: float((r > 1).mean()),
            largest="max",
        )
        columns.insert(0, "bound", name)
        columns["median"] = drawn[column].median()
        if column == "ratio":
            columns["capped"] = groups["is_capped"].mean()
            columns["useless"] = groups["relative_bound"].agg(lambda r: float((r >= 1).mean()))
        frames.append(columns.reset_index())
    joined = pd.concat(frames, ignore_index=True)
    return joined[["bound", *(name for name in joined.columns if name != "bound")]]


def tightness(trials: pd.DataFrame) -> pd.DataFrame:
    """Summarise, by format and K, how tight the proved bound is for plain cross-entropy.

    Args:
        trials: Result of `falsify`.

    Returns:
        Columns `format`, `K`, `bound/error` (median, normwise, below saturation), `saturated` and
        `capped` (shares of the cases). A case is saturated if its bound reaches the length of the
        gradient itself.
    """
    plain = trials[trials["is_plain"] & ~trials["is_searched"]]
    groups = plain.groupby(["format", "K"], observed=True)
    below = plain[(plain["relative_bound"] < 1) & (plain["normwise"] > 0)]
    factor = 1 / below.groupby(["format", "K"], observed=True)["normwise"].median()
    return pd.DataFrame(
        {
            "bound/error": factor,
            "saturated": groups["relative_bound"].agg(lambda r: float((r >= 1).mean())),
            "capped": groups["is_capped"].mean(),
        }
    ).reset_index()


def sentences(trials: pd.DataFrame) -> list[str]:
    """Describe the result in sentences."""
    violations, worst = int((trials["ratio"] > 1).sum()), trials["ratio"].max()
    searched = int(trials["is_searched"].sum())
    lines = [
        f"{len(trials):,} cases, {searched:,} of them from a search for the worst: "
        f"{violations} violations of the proved bound; largest measured/bound {worst:.6f}."
    ]
    fails = (trials["paper_u"] > 1).mean()
    underflow = (trials["paper_eta"] > 1).mean()
    lines.append(
        f"The papers' bound ε_max/G fails in {fails:.1%} of the cases with ε_max = u and in "
        f"{underflow:.1%} with η/2. It speaks of one absolute error of the coefficients: "
        "with u it is of the size of the cancellation in p − 1 for few classes, but lacks the K "
        "additions and the roundings of scaled logits; with η/2 it is about underflow, and applies "
        "where nothing else happens."
    )
    return lines


@in_neutral_state
def figure(trials: pd.DataFrame) -> Figure:
    """Draw the distribution of error/bound: the proved bound left, the papers' bound right."""
    sample = trials.sample(min(len(trials), 200_000), random_state=0)
    order = [name for name in dict.fromkeys(trials["format"]) if name in set(sample["format"])]
    plot = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = plot.subplots(1, 2, sharey=True)
    palette = sns.color_palette("colorblind", len(order))
    for axis, column, title in (
        (left, "normwise", "proved bound"),
        (right, "paper_u", "papers' bound u/G"),
    ):
        clipped = sample[[column, "format"]].copy()
        clipped[column] = clipped[column].clip(1e-6, 1e6)
        sns.ecdfplot(
            clipped, x=column, hue="format", hue_order=order, palette=palette,
            log_scale=True, legend=axis is right, ax=axis,
        )  # fmt: skip
        above = (trials[column] > 1).mean()
        axis.axvline(1.0, color="black", linewidth=1)
        axis.set(
            title=f"{title}: exceeded in {above:.2%}",
            xlabel="measured error / bound (ends: clipped)",
            ylabel="share of cases",
        )
        axis.grid(alpha=0.3)
    plot.suptitle("Error of the logit gradient of cross-entropy against bounds on it")
    return plot
