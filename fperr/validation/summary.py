"""What attempts to refute the bounds came to: a table, sentences, a figure."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

PAPERS = {"paper_u": "u", "paper_eta": "η/2", "paper_normal": "smallest normal"}


def table(trials: pd.DataFrame) -> pd.DataFrame:
    """For each format and scenario: cases, violations, tightness, caps; the papers' failures.

    Args:
        trials: from `falsify`.

    Returns:
        Columns `cases`, `violations`, `largest` and `median` (measured/bound, by component and
        normwise), `capped` (share of bounds at the cap), `useless` (share of bounds above the
        gradient itself), and for each epsilon_max of the papers' bound the share of cases in which
        it fails.
    """
    groups = trials.groupby(["format", "scenario"], observed=True)
    found = groups.agg(
        cases=("ratio", "size"),
        violations=("ratio", lambda r: int((r > 1).sum())),
        largest=("ratio", "max"),
        capped=("is_capped", "mean"),
        useless=("relative_bound", lambda r: float((r >= 1).mean())),
    )
    drawn = trials[~trials["is_searched"]]
    medians = drawn.groupby(["format", "scenario"], observed=True)["normwise"].median()
    found.insert(3, "median", medians)
    for column, name in PAPERS.items():
        found[f"paper fails, {name}"] = groups[column].agg(lambda r: float((r > 1).mean()))
    return found.reset_index()


def tightness(trials: pd.DataFrame) -> pd.DataFrame:
    """Median of bound/error, normwise, for plain cross-entropy below saturation.

    Saturation: the bound reaches the length of the gradient itself.
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
    """The result in words."""
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
        f"{underflow:.1%} with η/2: it speaks of an absolute truncation error of the coefficients, "
        "and applies where that is all that happens. Cancellation in p − 1 and the roundings of "
        "logits and log-sum-exp grow with the logits; it does not know them."
    )
    return lines


def figure(trials: pd.DataFrame) -> Figure:
    """How far below the bounds the errors lie: ours on the left, the papers' on the right."""
    shown = trials.sample(min(len(trials), 200_000), random_state=0)
    order = [name for name in dict.fromkeys(trials["format"]) if name in set(shown["format"])]
    plot = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = plot.subplots(1, 2, sharey=True)
    palette = sns.color_palette("colorblind", len(order))
    for axis, column, title in (
        (left, "normwise", "proved bound"),
        (right, "paper_u", "papers' bound u/G"),
    ):
        values = shown[[column, "format"]].copy()
        values[column] = values[column].clip(1e-6, 1e6)
        sns.ecdfplot(
            values, x=column, hue="format", hue_order=order, palette=palette,
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
