"""The losses by name, with their parameters."""

import difflib
import math
from dataclasses import replace
from typing import Any

from fperr.losses.base import Loss
from fperr.losses.ce import CE
from fperr.losses.comp_sum import ACCURATE_CE, COMP_SUM, GCE, MAE
from fperr.losses.cw import CW
from fperr.losses.dlr import DLR
from fperr.losses.gama import GAMA
from fperr.losses.mifpe import MIFPE, MIFPE_SHIFTED
from fperr.losses.pmifpe import PMIFPE
from fperr.losses.stable_ce import STABLE_CE
from fperr.losses.tmifpe import TMIFPE, TMIFPE_SHIFTED
from fperr.losses.unlimited_ce import UNLIMITED_CE
from fperr.theory.scenarios import SCENARIOS

# names that the field has for some, and the registry's
_ALSO_CALLED = {"cross_entropy": "ce", "crossentropy": "ce", "xent": "ce", "margin": "cw"}
LOSSES = (
    CE, MIFPE, TMIFPE, STABLE_CE, CW, DLR, MIFPE_SHIFTED, TMIFPE_SHIFTED, PMIFPE, GAMA,
    ACCURATE_CE, COMP_SUM, GCE, MAE,
)  # fmt: skip
"""The losses of the registry, in the order in which figures show them.

Example:
    >>> from fperr import losses
    >>> [loss.display_name for loss in losses.LOSSES][:4]
    ['CE', 'MIFPE', 'T-MIFPE', 'stable CE']
"""
LOSSES_BY_NAME = {loss.name: loss for loss in LOSSES}
"""The losses without a parameter, by name: everything that names or draws a loss reads this.

Example:
    >>> from fperr import losses
    >>> losses.LOSSES_BY_NAME["stable_ce"].has_value
    True
"""
# known by its name, and no loss that one would choose
_DIAGNOSTIC = {UNLIMITED_CE.name: UNLIMITED_CE}
# name -> its parameter, and the field that holds it
_PARAMETERS = {
    "mifpe": ("T", "T"),
    "mifpe_shifted": ("T", "T"),
    "pmifpe": ("C", "units"),
    "tmifpe": ("scenario", "forced"),
    "tmifpe_shifted": ("scenario", "forced"),
    "gama": ("weight", "weight"),
    "comp_sum": ("tau", "tau"),
}
LOSS_NAMES = (
    *LOSSES_BY_NAME,
    *(
        f"{name}:{parameter}=<{'name' if parameter == 'scenario' else 'number'}>"
        for name, (parameter, _) in _PARAMETERS.items()
    ),
)
"""The names that `loss_named` knows, parameters included.

Example:
    >>> from fperr import losses
    >>> losses.LOSS_NAMES[:3]
    ('ce', 'mifpe', 'tmifpe')
    >>> "mifpe:T=<number>" in losses.LOSS_NAMES
    True
"""


def loss_named(name: str) -> Loss:
    """The loss of that name, with its parameter.

    Args:
        name: Name of a loss, with a parameter or without: `"ce"`, `"mifpe:T=4"`,
            `"tmifpe:scenario=targeted_successful"`, `"gama:weight=10"`; `LOSS_NAMES` lists
            them all.

    Raises:
        ValueError: no such loss (lists the names), or the parameter's value is not usable.

    Example:
        >>> from fperr.losses import loss_named
        >>> loss_named("mifpe").T, loss_named("mifpe:T=4").T
        (1.0, 4.0)
    """
    known = LOSSES_BY_NAME | _DIAGNOSTIC
    if name in known:
        return known[name]
    base, _, assignment = name.partition(":")
    parameter, separator, text = assignment.partition("=")
    expected, field = _PARAMETERS.get(base, ("", ""))
    if not separator or parameter != expected:
        near = difflib.get_close_matches(name, (*LOSS_NAMES, *_ALSO_CALLED), n=1)
        meant = [f", did you mean {_ALSO_CALLED.get(n, n)!r}?" for n in near]
        raise ValueError(
            f"unknown loss {name!r}: expected one of {', '.join(LOSS_NAMES)}{''.join(meant)}"
        )
    if parameter == "scenario":
        if text not in SCENARIOS:
            raise ValueError(f"loss {name!r}: scenario must be one of {', '.join(SCENARIOS)}")
        return replace(LOSSES_BY_NAME[base], name=name, forced=SCENARIOS[text])
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf) and not (parameter == "tau" and number == 0):
        raise ValueError(
            f"loss {name!r}: {parameter} must be a positive finite number, got {text!r}"
        )
    changes: dict[str, Any] = {"name": name, field: number}
    return replace(LOSSES_BY_NAME[base], **changes)
