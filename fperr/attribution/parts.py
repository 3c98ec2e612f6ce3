"""The parts of a gap, from the outcomes of the arms."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fperr.attribution.paired import PairedDifference, paired_difference

FLOOR = "floor"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the gap: what robust accuracy falls by from one arm to another.

    Attributes:
        name: `"numerical"`, `"loss"`, `"search"`, `"gap"`, and further lines.
        words: The part in words.
        first, second: Columns of the two arms.
        is_of_gap: Whether it is one of the parts whose sum is the gap.
        difference: The difference, with its interval.
    """

    name: str
    words: str
    first: str
    second: str
    is_of_gap: bool
    difference: PairedDifference


def parts_of(frame: pd.DataFrame, *, is_exact: bool, confidence: float) -> tuple[Part, ...]:
    """The parts of the gap, the gap, and the lines beside it, of the images that were judged.

    Args:
        frame: Outcomes of the arms, a row an image; see `Attribution`.
        is_exact: Whether exact gradients were computed for all images.
        confidence: Confidence of the intervals.
    """
    judged = frame[frame["is_judged"]]
    without = "exact_ce" if is_exact else "stable_ce"
    other_loss = "exact_mifpe" if is_exact else "mifpe"
    has_floor = FLOOR in frame
    end = FLOOR if has_floor else other_loss
    # what stable cross-entropy gains is that error as far as it stands in for exact gradients
    numerical = "floating-point error" if is_exact else "stable cross-entropy, in its stead"
    lines = [
        ("numerical", numerical, "ce", without, True),
        ("loss", "the loss: cross-entropy against MIFPE", without, other_loss, True),
        *([("search", "the search", other_loss, FLOOR, True)] if has_floor else []),
        ("gap", "the whole gap", "ce", end, False),
        *([("mifpe_rounding", "MIFPE's own rounding", "mifpe", "exact_mifpe", False)]
          if is_exact else []),
        ("cw", "C&W beside MIFPE", "mifpe", "cw", False),
        ("tmifpe", "T-MIFPE beside MIFPE", "mifpe", "tmifpe", False),
    ]  # fmt: skip
    if "unlimited_ce" in frame:
        lines += [
            ("underflow", "why: exponents unlimited", "ce", "unlimited_ce", False),
            ("cancellation", "why: and no cancellation", "unlimited_ce", "stable_ce", False),
        ]
        if is_exact:
            lines.append(
                ("rest", "why: what is left in the network", "stable_ce", "exact_ce", False)
            )
    return tuple(
        Part(
            name, words, first, second, is_of_gap,
            paired_difference(judged[first], judged[second], confidence),
        )
        for name, words, first, second, is_of_gap in lines
    )  # fmt: skip


def floor(outcomes: pd.DataFrame, fooled: np.ndarray) -> np.ndarray:
    """The floor of each image, (n,): 0 if any start of any arm, or another attack, fooled it.

    Args:
        outcomes: Outcomes of the arms, a column an arm; NaN where an arm was not run.
        fooled: Whether another attack fooled the image, (n,) bool.
    """
    lowest = outcomes.min(axis=1, skipna=True).to_numpy()
    return np.where(fooled | (lowest < 1), 0.0, 1.0)
