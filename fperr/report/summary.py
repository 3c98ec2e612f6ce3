"""A report in a few numbers, and in words."""

from collections.abc import Sequence

import pandas as pd

# A gradient is called accurate if three quarters of the samples have delta and sign errors below
# these, and unreliable if a quarter exceeds those; a direction that is wrong by half is no direction
ACCURATE_BELOW = 0.01
UNRELIABLE_ABOVE = 0.5


def summarise(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row for each group of `by`: quartiles of delta, counts of failures, a verdict.

    Rows whose scale was capped, whose gradient is exactly flat, or which have no finite or no
    certified number are counted, and left out of the quartiles.
    """
    groups = frame.groupby(list(by), sort=False, observed=True)
    rows = [{**dict(zip(by, key, strict=True)), **_summary(group)} for key, group in groups]
    return pd.DataFrame(rows)


def _summary(group: pd.DataFrame) -> dict[str, object]:
    counted = group[~group["scale_capped"].fillna(False) & group["delta"].notna()]
    delta = counted["delta"].quantile([0.25, 0.5, 0.75])
    numbers: dict[str, object] = {
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
    }
    return {**numbers, "verdict": _verdict(counted, len(group), numbers)}


def _count(group: pd.DataFrame, flag: str) -> int:
    return int(group[flag].fillna(False).sum())


def _verdict(counted: pd.DataFrame, rows: int, numbers: dict[str, object]) -> str:
    """One line: accurate, degraded or unreliable, and the number that decides."""
    if not len(counted):
        return "not measured: no row has a finite gradient and a reference"
    wrong = counted[["delta", "sign_error_rate"]].max(axis=1)
    kind = "degraded"
    if wrong.quantile(0.75) < ACCURATE_BELOW:
        kind = "accurate"
    elif wrong.quantile(0.75) > UNRELIABLE_ABOVE:
        kind = "unreliable"
    reasons = [
        f"relative error {counted['delta'].median():.2g}",
        f"sign errors {counted['sign_error_rate'].median():.1%} (medians)",
    ]
    if numbers["dead"]:
        reasons.append(f"{numbers['dead']} of {rows} gradients exactly zero")
    if numbers["not_finite"]:
        reasons.append(f"{numbers['not_finite']} of {rows} not finite")
    return f"{kind}: {', '.join(reasons)}"
