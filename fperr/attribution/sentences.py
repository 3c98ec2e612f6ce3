"""An attribution in one sentence."""

import pandas as pd

from fperr.attribution.paired import EQUIVALENCE, FEWEST_IMAGES, PairedDifference, points
from fperr.attribution.parts import FLOOR, Part
from fperr.attribution.stand_in import StandIn

_MOST_UNSEEN = 0.01  # size of the interval up to which "no floating-point error seen" is said
_NEAR = 0.005  # a loss that leaves at most this much more than exact gradients is recommended
_LOSSES = ("stable_ce", "cw", "mifpe", "tmifpe")
_LESS = f"less than {100 * EQUIVALENCE:g} points of floating-point error"


def sentence(
    frame: pd.DataFrame, parts: tuple[Part, ...], stand_in: StandIn | None, search: str | None
) -> str:
    """How much of the gap is floating-point error, and what to do.

    Args:
        frame: Outcomes of the arms, a row an image.
        parts: Parts of the gap.
        stand_in: How far stable cross-entropy stands in for exact gradients, where it was compared.
        search: What the floor is made of, or None.
    """
    judged = frame[frame["is_judged"]]
    by_name = {part.name: part for part in parts}
    unjudged = len(frame) - len(judged)
    if not len(judged):
        return (
            f"None of {len(frame)} images could be judged: their logits are not finite in the "
            "format, predictions did not come again, or exact gradients could not be certified; "
            "take a wider format."
        )
    left_out = f" ({unjudged} of {len(frame)} images could not be judged and are left out)"
    text = f"Cross-entropy PGD leaves {points(judged['ce'].mean())} %{left_out if unjudged else ''}"
    numerical = by_name["numerical"]
    if numerical.second == "exact_ce":
        text += _about_rounding(numerical, judged)
    elif stand_in is not None and stand_in.is_upheld:
        text += (
            _about_rounding(numerical, judged) + " Stable cross-entropy stands in for exact gradi"
        )
        text += "ents."
    else:
        text += _about_stable(numerical.difference, judged, stand_in)
    text += f" {_about_loss(by_name['loss'].difference)}"
    return text if search is None else f"{text} {_about_search(judged, search)}"


def share_of_gap(parts: tuple[Part, ...]) -> str | None:
    """The share of the gap that is floating-point error; None where it would mean nothing.

    That is where the gap is not told from 0, and where the part is not between 0 and the gap.
    """
    by_name = {part.name: part for part in parts}
    gap, numerical = by_name["gap"].difference, by_name["numerical"].difference
    if not gap.is_told or not 0 <= numerical.estimate <= gap.estimate:
        return None
    what = "floating-point error"
    if by_name["numerical"].second != "exact_ce":
        what = "what stable cross-entropy gains"
    return f"{100 * numerical.estimate / gap.estimate:.0f} % of the gap of {gap} points is {what}."


def _about_rounding(part: Part, judged: pd.DataFrame) -> str:
    """What rounding does to the attack."""
    N, n = part.difference, part.difference.images
    counts = (
        f"{N.only_first or 'none'} of {n} images fall only without it, {N.only_second or 'none'} "
        "only with it"
    )
    if N.is_told and N.estimate > 0:
        return (
            f". Without rounding it would leave {points(judged[part.second].mean())} %: "
            f"{N} points are floating-point error ({counts}).{_advice(judged, part.second)}"
        )
    if N.is_told:
        ends = f"[{points(-N.high)}, {points(-N.low)}]"
        return f": rounding helps the attack, by {points(-N.estimate)} {ends} points ({counts})."
    if N.is_equivalent:
        return f": {_LESS}, {N} ({counts})."
    if N.low >= -_MOST_UNSEEN and N.high <= _MOST_UNSEEN:
        return f": no floating-point error seen, {N} points ({counts}; {_more(N)})."
    text = f": too few images to tell how much is floating-point error, {N} points"
    if N.only_first or N.only_second:  # what was seen, though it may be chance
        left = points(judged[part.second].mean())
        return f"{text} ({counts}, and {left} % is left without it; {_more(N)})."
    return f"{text} ({_more(N)})."


def _about_stable(N: PairedDifference, judged: pd.DataFrame, stand_in: StandIn | None) -> str:
    """The difference to stable cross-entropy, where it is not shown to be floating-point error."""
    stable = f"stable cross-entropy {points(judged['stable_ce'].mean())} %, {N} points less"
    if stand_in is None:
        return f", {stable}. How much of that is rounding is not told: nothing exact was computed."
    return (
        f", {stable}. How much is rounding is not told: exact gradients differ from stable "
        f"cross-entropy on {stand_in.random_differing} of {stand_in.random} random images and on "
        f"{stand_in.discordant_differing} of {stand_in.discordant} others; give exact='all'."
    )


def _more(N: PairedDifference) -> str:
    """How many images would tell."""
    return f"about {max(N.images_needed, FEWEST_IMAGES)} images would tell"


def _about_loss(loss: PairedDifference) -> str:
    """What another loss gains, which rounding does not."""
    if loss.is_told and loss.estimate > 0:
        return f"What MIFPE gains, {loss} points, is a better direction."
    if loss.is_told:
        return f"MIFPE does worse, by {points(-loss.estimate)} points."
    return f"What MIFPE gains, {loss} points, is not told from 0."


def _about_search(judged: pd.DataFrame, search: str) -> str:
    """What all attacks together leave."""
    left = f"leave {points(judged[FLOOR].mean())} %"
    if search != "autoattack":
        return f"All starts of all attacks together {left}."
    more = int(judged["autoattack_fooled"].sum())
    return (
        f"All attacks together {left}; AutoAttack fooled {more or 'none'} of the images that "
        "withstood every start."
    )


def _advice(judged: pd.DataFrame, without: str) -> str:
    """The losses in the format that do as well as cross-entropy without rounding."""
    most = judged[without].mean() + _NEAR
    good = [name for name in _LOSSES if judged[name].mean() <= most]
    if not good:
        return ""
    return f" Use {' or '.join(filter(None, [', '.join(good[:-1]), good[-1]]))}."
