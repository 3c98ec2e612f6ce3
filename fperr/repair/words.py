"""How to take another loss, in two lines of code: in one's own loop, and in others' attacks."""

from fperr.repair.call import REPAIRS

_FUNCTIONS = ("stable_ce", "mifpe", "tmifpe", "pmifpe", "cw", "dlr", "accurate_ce")


def how_to_use(loss: str) -> str | None:
    """Two lines of code, in a sentence; None for losses without a function of their own.

    Args:
        loss: Name of the loss, without a parameter.

    Example:
        >>> from fperr.repair.words import how_to_use
        >>> print(how_to_use("cw"))
        in your own loop: loss = fperr.losses.cw(logits, y, reduction="sum")
    """
    if loss not in _FUNCTIONS:
        return None
    name = "cross_entropy" if loss == "accurate_ce" else loss
    own = f'in your own loop: loss = fperr.losses.{name}(logits, y, reduction="sum")'
    if name not in REPAIRS:
        return own
    return (
        f"{own}; around an attack of torchattacks, foolbox, ART, adv_lib or AutoAttack: "
        f'with fperr.repaired("{name}", value="stable_ce"): ...'
    )
