"""An attribution in one sentence."""

import pandas as pd

from fperr.attribution.paired import EQUIVALENCE, PairedDifference, points
from fperr.attribution.parts import Part

_MOST_UNSEEN = 0.01  # upper limit up to which "no floating-point error seen" is said
_NEAR = 0.005  # a loss that leaves at most this much more than exact gradients is recommended
_LOSSES = {"stable_ce": "stable_ce", "mifpe": "mifpe", "tmifpe": "tmifpe"}


def sentence(frame: pd.DataFrame, parts: tuple[Part, ...], search: str | None) -> str:
    """How much of the gap is floating-point error, and what to do.

    Args:
        frame: Outcomes of the arms, a row an image.
        parts: Parts of the gap.
        search: What the floor is made of, or None.
    """
    judged = frame[frame["is_judged"]]
    by_name = {part.name: part for part in parts}
    unjudged = len(frame) - len(judged)
    left_out = f" ({unjudged} of {len(frame)} images could not be judged and are left out)"
    if not len(judged):
        return (
            f"None of {len(frame)} images could be judged: their logits are not finite in the "
            "format, or predictions did not come again; take a wider format."
        )
    numerical, loss = by_name["numerical"], by_name["loss"].difference
    text = f"Cross-entropy PGD leaves {points(judged['ce'].mean())} %{left_out if unjudged else ''}"
    text += _about_rounding(numerical, judged, loss)
    if search is not None:
        rest = by_name["search"].difference
        attack = "AutoAttack" if search == "autoattack" else "the best of all starts"
        found = points(rest.estimate)
        text += f" {attack[0].upper() + attack[1:]} finds {found} points more."
    return text


def share_of_gap(parts: tuple[Part, ...]) -> str | None:
    """The share of the gap that is floating-point error; None unless the gap is told from 0."""
    by_name = {part.name: part.difference for part in parts}
    gap, numerical = by_name["gap"], by_name["numerical"]
    if not gap.is_told or gap.estimate <= 0:
        return None
    return (
        f"{100 * numerical.estimate / gap.estimate:.0f} % of the gap of {gap} points is "
        "floating-point error."
    )


def _about_rounding(part: Part, judged: pd.DataFrame, loss: PairedDifference) -> str:
    """What rounding does to the attack."""
    N, n = part.difference, part.difference.images
    if N.is_told and N.estimate > 0:
        counts = (
            f"{N.only_first} of {n} images fall only without it, "
            f"{N.only_second or 'none'} only with it"
        )
        return (
            f". Without rounding it would leave {points(judged[part.second].mean())} %: "
            f"{N} points are floating-point error ({counts}).{_advice(judged, part.second)}"
        )
    if N.is_told:
        return (
            f": rounding helps the attack, by {points(-N.estimate)} points [{points(-N.high)}, "
            f"{points(-N.low)}]. {_about_loss(loss)}"
        )
    if N.is_equivalent:
        return (
            f": less than {100 * EQUIVALENCE:g} points of floating-point error, {N}. "
            f"{_about_loss(loss)}"
        )
    if N.high <= _MOST_UNSEEN:
        return (
            f": no floating-point error seen, {points(N.estimate)} points, at most "
            f"{points(N.high)} (to show less than {100 * EQUIVALENCE:g} takes about "
            f"{N.images_needed} images). {_about_loss(loss)}"
        )
    return (
        f": too few images to tell how much of it is floating-point error, {N} points: about "
        f"{N.images_needed} would tell. {_about_loss(loss)}"
    )


def _about_loss(loss: PairedDifference) -> str:
    """What another loss gains, which rounding does not."""
    if loss.is_told and loss.estimate > 0:
        return f"What MIFPE gains, {loss} points, is a better direction."
    return f"What MIFPE gains, {loss} points, is not told from 0."


def _advice(judged: pd.DataFrame, without: str) -> str:
    """The losses in the format that do as well as cross-entropy without rounding."""
    most = judged[without].mean() + _NEAR
    good = [name for column, name in _LOSSES.items() if judged[column].mean() <= most]
    if not good:
        return ""
    return f" Use {' or '.join(filter(None, [', '.join(good[:-1]), good[-1]]))}."
