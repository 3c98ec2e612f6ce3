"""Summarises a report in a few numbers, and in sentences."""

import json
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from fperr.reasons import reasons, tally
from fperr.repair.words import how_to_use
from fperr.report.judging import is_unmeasured, judge
from fperr.report.verdict import Thresholds

# the headline names a gap between two losses only if the larger median relative error is above the
# first number, and the ratio of the medians at or above the second
_LEAST_DELTA, _LEAST_GAP = 0.01, 10.0


def usable(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with a relative error, and a scale that was not capped."""
    return frame[~frame["scale_capped"].fillna(False) & frame["delta"].notna()]


def has_flips(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows have a ReLU or pooling whose branch differs from the exact one; ties aside."""
    flips: pd.Series[bool] = (frame["activation_flips"] + frame["pooling_flips"]).fillna(0) > 0
    return flips


def routing(frame: pd.DataFrame) -> pd.DataFrame:
    """The number of flips, and of samples with flips, by network, format and layer."""
    # a sample's flips in a format are the same for every scenario and loss
    once = frame.drop_duplicates(["network", "sample", "format"])
    flip_rows = [
        {"network": network, "format": fmt, "sample": sample, "layer": layer}
        | {"flips": flips, "tie_flips": ties}
        for network, fmt, sample, text in zip(
            once["network"], once["format"], once["sample"], once["flips_by_layer"], strict=True
        )
        if isinstance(text, str)
        for layer, (flips, ties) in json.loads(text).items()
    ]
    columns = ["network", "format", "layer", "samples", "flips", "tie_flips"]
    if not flip_rows:
        return pd.DataFrame(columns=columns)
    groups = pd.DataFrame(flip_rows).groupby(["network", "format", "layer"], sort=False)
    table = groups[["flips", "tie_flips"]].sum()
    table.insert(0, "samples", groups["sample"].nunique())
    return table.reset_index()


def summarise(frame: pd.DataFrame, by: Sequence[str], thresholds: Thresholds) -> pd.DataFrame:
    """One row for each group: quartiles of delta, counts of failures, and a verdict.

    Sign twins (another scenario's gradient with its sign changed) are no independent results and
    are left out of the numbers, unless the groups distinguish scenarios; the verdict, which is one
    on scenarios, is of all rows. Rows whose scale was capped, whose exact
    gradient is zero, or whose numbers are not finite or not certified are counted, and left out of
    the quartiles. `unmeasured` counts the rows that have no delta and do not fail either; `reason`
    is the most frequent reason of those. `Verdict` says which scenario decides.

    Args:
        frame: Rows of a report.
        by: Columns to group by.
        thresholds: Largest errors and shares of failures that the verdict allows.
    """
    has_twins = "scenario" in by
    rows = []
    for key, group in frame.groupby(list(by), sort=False, observed=True):
        independent = group if has_twins else group[~group["is_sign_twin"]]
        verdict = judge(group, thresholds).sentence
        rows.append(
            {**dict(zip(by, key, strict=True)), **_summary(independent), "verdict": verdict}
        )
    return pd.DataFrame(rows)


def overview(frame: pd.DataFrame) -> pd.DataFrame:
    """Median relative errors, by network, scenario and format in lines, and by loss in columns.

    A cell also says how many gradients are exactly zero, not finite, or not measured.
    """
    independent = frame[~frame["is_sign_twin"]]
    lines = []
    for (network, scenario, fmt), group in independent.groupby(
        ["network", "scenario", "format"], sort=False
    ):
        line = {
            "network": network,
            "median margin": short(group["margin"].dropna().median()),
            "scenario": scenario,
            "format": fmt,
        }
        line |= {str(loss): _cell(rows) for loss, rows in group.groupby("loss", sort=False)}
        lines.append(line)
    return pd.DataFrame(lines)


def remedy(good: Mapping[str, list[str]], bad: Mapping[str, list[str]]) -> str:
    """How to take a loss that may be followed where another one may not; nothing if there is none.

    Args:
        good: Formats in which a loss may be followed, by loss.
        bad: Formats in which it may not.
    """
    unsafe = {fmt for formats in bad.values() for fmt in formats}
    for loss, formats in good.items():
        words = how_to_use(loss)
        if words is not None and unsafe <= set(formats):
            return f"Use {loss}: {words}."
    return ""


def headline(frame: pd.DataFrame) -> str:
    """A sentence about the widest gap between the losses in one scenario and format."""
    counted = usable(frame)
    if not len(counted):
        first = "; ".join(f"{t.words}, {t.remedy}" for t in tally(reasons(frame))[:1])
        return f"No gap is shown, as nothing was measured{': ' * bool(first)}{first}."
    widest, scenario_and_format, medians = 0.0, ("", ""), pd.Series(dtype=float)
    for key, group in counted.groupby(["scenario", "format"], sort=False):
        losses = group.groupby("loss", sort=False)["delta"].median()
        gap = float(losses.max()) / max(float(losses.min()), math.ulp(0.0))
        if losses.max() > _LEAST_DELTA and gap >= _LEAST_GAP and gap > widest:
            widest, scenario_and_format, medians = gap, key, losses
    if not widest:
        return (
            "No wide gap: no loss has a median relative error above "
            f"{100 * _LEAST_DELTA:g} % that is {_LEAST_GAP:g} times another one's."
        )
    scenario, fmt = scenario_and_format
    return (
        f"The widest gap: in {fmt} ({scenario.replace('_', ', ')}), the {medians.idxmax()} "
        f"gradient has a median relative error of {medians.max():.2g} and the {medians.idxmin()} "
        f"gradient one of {medians.min():.2g}: "
        "the same network, the same images; the difference is floating-point error."
    )


def short(number: float) -> str:
    """A number with three digits, without an exponent in [100, 1e6); a dash for NaN."""
    if math.isnan(number):
        return "-"
    return f"{number:.0f}" if 100 <= abs(number) < 1e6 else f"{number:.3g}"


def certainties(frame: pd.DataFrame) -> list[str]:
    """How certain the exact gradients of each format are, in words."""
    return [
        f"{fmt}: "
        + ", ".join(
            f"{count} {grade}"
            for grade in ("proved", "agreed", "uncertified")
            if (count := int((rows["certainty"] == grade).sum()))
        )
        for fmt, rows in frame.groupby("format", sort=False)
        if rows["certainty"].notna().any()
    ]


def _cell(rows: pd.DataFrame) -> str:
    """The median relative error, and how many gradients are zero, not finite or not measured."""
    median = usable(rows)["delta"].dropna().median()
    unmeasured = is_unmeasured(rows)
    notes = [
        f"{count} of {len(rows)} {words}"
        for count, words in (
            (_count(rows, "is_dead"), "zero"),
            (int((~rows["is_finite"].fillna(False) & ~unmeasured).sum()), "not finite"),
            (int(unmeasured.sum()), "not measured"),
        )
        if count
    ]
    number = "-" if math.isnan(median) else f"{median:.2g}"
    return f"{number} ({', '.join(notes)})" if notes else number


def _summary(group: pd.DataFrame) -> dict[str, object]:
    """The columns of `summarise` for one group of rows, but the verdict."""
    counted = usable(group)
    delta = counted["delta"].quantile([0.25, 0.5, 0.75])
    unmeasured = group[is_unmeasured(group)]
    return {
        "rows": len(group),
        "delta_q25": delta[0.25],
        "delta_median": delta[0.5],
        "delta_q75": delta[0.75],
        "sign_error_median": counted["sign_error_rate"].dropna().median(),
        "flipped": int(has_flips(counted).sum()),
        "frozen_median": counted["delta_frozen"].dropna().median(),
        "dead": _count(group, "is_dead"),
        "capped": _count(group, "scale_capped"),
        "not_finite": len(group) - _count(group, "is_finite"),
        "flat": _count(group, "truly_flat"),
        "proved": int((group["certainty"] == "proved").sum()),
        "agreed": int((group["certainty"] == "agreed").sum()),
        "uncertified": len(group) - _count(group, "is_certified"),
        "unmeasured": len(unmeasured),
        "reason": tally(reasons(unmeasured))[0].words if len(unmeasured) else None,
    }


def _count(group: pd.DataFrame, flag: str) -> int:
    """The number of rows with the flag set."""
    return int(group[flag].fillna(False).sum())
