"""A report in a few numbers, and in words."""

import math
from collections.abc import Sequence

import pandas as pd

# A gradient is called accurate if three quarters of the samples have delta and sign errors below
# the first, and unreliable if a quarter exceeds the second: half wrong is no direction
ACCURATE_BELOW = 0.01
UNRELIABLE_ABOVE = 0.5


def summarise(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row for each group of `by`: quartiles of delta, counts of failures, a verdict.

    Sign twins (another scenario's gradient with its sign changed) are no independent results and
    are left out, unless the scenarios are told apart. Rows whose scale was capped, whose gradient
    is exactly flat, or which have no finite or no certified number are counted, and left out of
    the quartiles. The verdict is that of the worst scenario in the group.
    """
    shown = frame if "scenario" in by else frame[~frame["is_sign_twin"]]
    groups = shown.groupby(list(by), sort=False, observed=True)
    rows = [{**dict(zip(by, key, strict=True)), **_summary(group)} for key, group in groups]
    return pd.DataFrame(rows)


def headline(frame: pd.DataFrame) -> str:
    """One sentence: the worst and the best loss of the widest gap that one format shows."""
    widest, place, medians = 1.0, ("", ""), pd.Series(dtype=float)
    for key, group in _usable(frame).groupby(["scenario", "format"], sort=False):
        losses = group.groupby("loss", sort=False)["delta"].median()
        gap = losses.max() / max(losses.min(), math.ulp(0.0))
        if losses.max() > ACCURATE_BELOW and gap > widest:
            widest, place, medians = gap, key, losses
    if widest == 1.0:
        return "No loss has a median relative error above 1 % where another one does better."
    scenario, fmt = place
    return (
        f"In {fmt} ({scenario.replace('_', ', ')}), the {medians.idxmax()} gradient has a "
        "median relative error of "
        f"{medians.max():.2g} and the {medians.idxmin()} gradient one of {medians.min():.2g}: "
        "the same network, the same images; the difference is floating-point error."
    )


def _usable(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[~frame["scale_capped"].fillna(False) & frame["delta"].notna()]


def _summary(group: pd.DataFrame) -> dict[str, object]:
    counted = _usable(group)
    delta = counted["delta"].quantile([0.25, 0.5, 0.75])
    return {
        "rows": len(group),
        "delta_q25": delta[0.25],
        "delta_median": delta[0.5],
        "delta_q75": delta[0.75],
        "sign_error_median": counted["sign_error_rate"].median(),
        "dead": _count(group, "is_dead"),
        "capped": _count(group, "scale_capped"),
        "not_finite": len(group) - _count(group, "is_finite"),
        "flat": _count(group, "truly_flat"),
        "uncertified": len(group) - _count(group, "is_certified"),
        "verdict": _verdict(group),
    }


def _count(group: pd.DataFrame, flag: str) -> int:
    return int(group[flag].fillna(False).sum())


def _verdict(group: pd.DataFrame) -> str:
    """One line: accurate, degraded or unreliable, and the numbers behind it."""
    judged = group[group["delta"].notna() | ~group["is_finite"].fillna(True)]
    judged = judged[~judged["scale_capped"].fillna(False)]
    if not len(judged):
        return "not measured: no row has a reference"
    wrong = judged[["delta", "sign_error_rate"]].max(axis=1).fillna(math.inf)
    upper = wrong.groupby(judged["scenario"], sort=False).quantile(0.75, interpolation="higher")
    worst = judged[judged["scenario"] == upper.idxmax()]
    kind = "degraded"
    if upper.max() < ACCURATE_BELOW:
        kind = "accurate"
    elif upper.max() > UNRELIABLE_ABOVE:
        kind = "unreliable"
    reasons = [
        f"relative error {worst['delta'].median():.2g}",
        f"sign errors {worst['sign_error_rate'].median():.1%} (medians)",
    ]
    for flag, words in (("is_dead", "exactly zero"), ("is_finite", "not finite")):
        count = _count(worst, flag) if flag == "is_dead" else len(worst) - _count(worst, flag)
        if count:
            reasons.append(f"{count} of {len(worst)} {words}")
    return f"{kind}: {', '.join(reasons)}"
