"""The reasons why a row has no relative error, in words, and what to do about them."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from fperr.formats import FORMATS, TF32, Format

INPUT_NOT_FINITE = "its input is not finite"
LOGITS_NOT_FINITE = "its exact logits are infinite or undefined"
TOO_FEW_CLASSES = "all classes but one are masked: there is no margin"
NOT_CERTIFIED = "the reference could not be certified"
UNDEFINED = "the loss is undefined: its denominator is 0"
FLAT = "the exact gradient is zero: there is no relative error"
# the reason of rows that have a number, which is due to the cap and not to the loss: not judged
SCALE_CAPPED = "its scale was capped: the margin is too small"
_NOT_RECORDED = "no reason is recorded"
_NO_REMEDY = "no remedy is known"


class UnmeasuredWarning(UserWarning):
    """Rows have no relative error, and the reason is neither the format nor a flat network."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Rows that lack a relative error for the same reason.

    Attributes:
        words: Reason in words; in general terms where the reasons of the rows differ in a number.
        remedy: Advice what to do about it.
        is_result: True if the reason is a result about the format or the network, and no gap in
            the measurement: the format's numbers are not finite, or the exact gradient is zero.
        rows: Number of rows.
    """

    words: str
    remedy: str
    is_result: bool
    rows: int


@dataclass(frozen=True, slots=True)
class _Rule:
    """A class of reasons that are counted together, and their remedy.

    Attributes:
        pattern: Regular expression that matches each of the reasons from beginning to end.
        words: Reason in general terms.
        remedy: Advice what to do about it.
        is_result: True if the reason is a result and no gap, as in `Tally`.
    """

    pattern: str
    words: str
    remedy: str
    is_result: bool = False


def not_certified(fault: str) -> str:
    """The reason of a sample at which the exact network could not be certified."""
    return f"{NOT_CERTIFIED}: {' '.join(fault.split())}"


def infinite_slope(operation: str) -> str:
    """The reason of a sample whose exact gradient is infinite or undefined.

    Args:
        operation: Operation without a slope at 0, and the modules that call it.
    """
    return f"infinite slope: {operation} at 0"


def format_fails(format: Format, fault: str) -> str:
    """The reason of the rows of a format in which the network cannot be run."""
    words = " ".join(fault.split()).removeprefix(f"in {format.name}: ")
    return f"the network fails in {format.name}: {words}"


def unusable_scale(c: float) -> str:
    """The reason of a row whose scale c is 0, infinite or not a number."""
    return f"its scale T/margin is {_word(c)}"


def too_few_bits(log2_error: float, bits: float) -> str:
    """The reason of a row whose exact gradient lacks bits.

    Args:
        log2_error: log2 of the relative error of the exact gradient; may be infinite or NaN.
        bits: Bits that are needed.
    """
    # never all bits, even if the difference vanishes in rounding to an integer
    is_finite = math.isfinite(log2_error)
    certain = min(max(0, math.floor(-log2_error)), math.ceil(bits) - 1) if is_finite else 0
    return f"the reference is certain to {certain} of {bits:g} bits"


def not_finite(format: Format, quantity: str) -> str:
    """The reason of a row with a quantity ("gradient", "logits") that is not finite in a format."""
    return f"the {format.name} {quantity} {'are' if quantity.endswith('s') else 'is'} not finite"


def _word(number: float) -> str:
    """The number as text, or a word where it is not finite."""
    if math.isnan(number):
        return "not a number"
    return "infinite" if math.isinf(number) else f"{number:g}"


def _rule_of_format(format: Format) -> _Rule:
    """The rule for numbers of a format that are not finite."""
    # tf32 has float32's range, and exists on CUDA devices only; emulated ones have their own's
    plain = [f for f in FORMATS.values() if f is not TF32 and f.emulation is None]
    wider = [f.name for f in plain if f.emax > format.emax]
    remedy = (
        f"measure in a format with more range: {', '.join(wider)}"
        if wider
        else "scale the network's input or its weights down"
    )
    words = f"the {format.name} logits or gradients are not finite"
    return _Rule(f"the {format.name} .* not finite", words, remedy, is_result=True)


# All remedies. The tests run the code and the options that they name.
_RULES = (
    _Rule(
        INPUT_NOT_FINITE,
        INPUT_NOT_FINITE,
        "leave such samples and their labels out: x[x.flatten(1).isfinite().all(1)]",
    ),
    _Rule(
        LOGITS_NOT_FINITE,
        LOGITS_NOT_FINITE,
        "leave such samples out: the model has no logits there (0/0, or a softmax of masks only)",
    ),
    _Rule(
        TOO_FEW_CLASSES,
        TOO_FEW_CLASSES,
        "leave such samples out: no attack can change their class",
    ),
    _Rule(
        f"{NOT_CERTIFIED}: balls were not computed, as .*",
        "its exact gradient needs balls, and the time was up",
        "give a larger max_seconds, or leave it out",
    ),
    _Rule(
        f"{NOT_CERTIFIED}(: .*)?",
        NOT_CERTIFIED,
        "measure with engine='mpmath', which compares two precisions and proves nothing",
    ),
    _Rule(
        "infinite slope: .*",
        "the exact gradient is infinite or undefined: an operation has no slope at 0",
        "keep the operation's argument away from 0, or leave such samples out: PyTorch's gradient "
        "is infinite or not a number there, too",
    ),
    _Rule(
        "the network fails in .*",
        "the network fails in a format",
        "leave that format out, or change what does not fit it (a constant such as a mask of -1e9, "
        "or one that is made in float32)",
    ),
    _Rule(
        r"the reference is certain to \d+ of \d+ bits",
        "the reference is certain to fewer bits than delta needs",
        "measure with engine='ball', which raises its precision until they are proved",
    ),
    _Rule(
        "its scale T/margin is .*",
        "its scale T/margin is 0, infinite or not a number",
        "use a larger T, a format with more range, or a loss without a scale, as stable_ce is",
    ),
    _Rule(UNDEFINED, UNDEFINED, "use another loss there, for instance cw"),
    _Rule(SCALE_CAPPED, SCALE_CAPPED, "use a loss without a scale there: ce or stable_ce"),
    _Rule(FLAT, FLAT, "measure other samples", is_result=True),
    *(_rule_of_format(f) for f in FORMATS.values()),
    _Rule(
        "the .* not finite",
        "the logits or gradients of a format of your own are not finite",
        "measure in a format with more range, as float64 has",
        is_result=True,
    ),
)


def tally(reasons: Iterable[str]) -> tuple[Tally, ...]:
    """Count the rows for each reason, the most frequent reason first."""
    groups: dict[_Rule, list[str]] = {}
    for reason in reasons:
        groups.setdefault(_rule_of(reason), []).append(reason)
    tallies = [
        Tally(
            group[0] if len(set(group)) == 1 else rule.words,
            rule.remedy,
            rule.is_result,
            len(group),
        )
        for rule, group in groups.items()
    ]
    return tuple(sorted(tallies, key=lambda t: -t.rows))


def _rule_of(reason: str) -> _Rule:
    """The rule that matches a reason; a rule of its own if there is none."""
    for rule in _RULES:
        if re.fullmatch(rule.pattern, reason):
            return rule
    return _Rule(re.escape(reason), reason, _NO_REMEDY)


def reasons(frame: pd.DataFrame) -> "pd.Series[str]":
    """The reason of each row without a relative error, or with one that cannot be judged."""
    capped = frame["scale_capped"].fillna(False).astype(bool)
    missing = frame["delta"].isna()
    by_row = frame["reason"].where(missing)
    by_row = by_row.mask(capped & by_row.isna() & ~missing, SCALE_CAPPED)
    return by_row.mask(missing & by_row.isna(), _NOT_RECORDED).dropna()


def _rows(number: int) -> str:
    """A number of rows in words."""
    return f"{number} row{'s' * (number != 1)}"


def counted(tallies: Iterable[Tally]) -> str:
    """Numbers of rows and their reasons in words: `"2: its input is not finite; 1: ..."`."""
    return "; ".join(f"{t.rows}: {t.words}" for t in tallies)


def is_any_measured(frame: pd.DataFrame) -> bool:
    """Whether a row has a relative error."""
    return bool(frame["delta"].notna().any())


def unmeasured_sentence(frame: pd.DataFrame, *, with_results: bool) -> str | None:
    """A sentence how many rows were not measured, why, and what to do; None if all were.

    Args:
        frame: Rows of a report.
        with_results: Count flat gradients and formats that are not finite, too.
    """
    tallies = tally(reasons(frame[frame["delta"].isna()]))
    gaps = [t for t in tallies if with_results or not t.is_result]
    if not gaps:
        return None
    number = sum(t.rows for t in gaps)
    explanation = "; ".join(f"{t.words} ({_rows(t.rows)}: {t.remedy})" for t in gaps)
    return f"{number} of {len(frame)} rows were not measured: {explanation}"
