"""How long the arms will take, from a few steps of each."""

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from fperr.attacks import AttackWarning, attack
from fperr.attribution.arms import (
    CE,
    EXACT,
    EXACT_CE,
    IN_FORMAT,
    UNLIMITED_CE,
    Arm,
    Setting,
)
from fperr.attribution.request import AttributionRequest, ExactChoice, checked_request
from fperr.caller_state import in_neutral_state
from fperr.errors import FperrError

_TIMED_IMAGES = 32
_TIMED_STEPS = 3
_AUTOATTACK_STEPS = 7_000  # passes of its standard version for an image that withstands
_MOST_SECONDS = 20 * 60  # of exact arms that `exact="auto"` runs on all images
_STAND_IN_SHARE = 0.2  # of the images that usually get exact gradients beside a stand-in


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds that the arms take, within a factor of 2 or so.

    Attributes:
        in_format: All arms in the format.
        exact: The exact arms, on all images; inf if they cannot run.
        search: AutoAttack on all images: an upper limit, as most may be fooled before.
        why_not_exact: Why exact gradients cannot be had, in words; None: they can.
    """

    in_format: float
    exact: float
    search: float
    why_not_exact: str | None

    @property
    def allows_all(self) -> bool:
        """Whether exact gradients on all images take at most 20 minutes."""
        return self.exact <= _MOST_SECONDS

    def share(self, exact: str) -> float:
        """The share of the exact arms' work that is done with that choice."""
        return {"all": 1.0, "sample": _STAND_IN_SHARE / len(EXACT)}.get(exact, 0.0)

    def describe(self, exact: str, *, with_autoattack: bool) -> str:
        """The forecast of a call in words."""
        of_exact = self.share(exact) * self.exact if self.share(exact) else 0.0
        text = f"about {_duration(self.in_format + of_exact)} of computing"
        if of_exact:
            text += f", {_duration(of_exact)} of it exact gradients"
        if with_autoattack:
            text += f"; AutoAttack beside it, at most {_duration(self.search)}"
        return text


def forecast(setting: Setting, arms: int, *, is_exact: bool = True) -> Forecast:
    """Time a few steps of cross-entropy, in the format and exactly.

    Args:
        setting: What all arms have in common.
        arms: Number of arms in the format.
        is_exact: Whether exact gradients are timed, too.
    """
    per_step = seconds_per_image_and_step(CE, setting)
    total = len(setting.x) * setting.starts * setting.steps
    why_not, of_exact = None, float("inf")
    try:
        if is_exact:
            of_exact = seconds_per_image_and_step(EXACT_CE, setting) * total * len(EXACT)
    except FperrError as fault:
        why_not = str(fault)
    search = per_step * len(setting.x) * _AUTOATTACK_STEPS
    return Forecast(per_step * total * arms, of_exact, search, why_not)


def arms_in_format(request: AttributionRequest) -> tuple[Arm, ...]:
    """The arms of a call that run in its format."""
    return (*IN_FORMAT, *((UNLIMITED_CE,) if request.has_ladder else ()))


def allowed(exact: ExactChoice, times: Forecast) -> tuple[ExactChoice, str | None]:
    """How many images get exact gradients, and why there are none, by a forecast."""
    if exact != "auto":
        return exact, None
    if times.why_not_exact is not None:
        return "none", (
            "Stable cross-entropy stands in for exact gradients, and nothing could be compared: "
            f"{times.why_not_exact}"
        )
    return ("all" if times.allows_all else "sample"), None


@in_neutral_state
def forecast_words(model: nn.Module, x: Tensor | np.ndarray, y: object, **arguments: Any) -> str:
    """How long `attribute` would take, in words; a few steps are timed.

    Args:
        model: Model.
        x: Inputs (n, ...).
        y: Labels (n,).
        arguments: Other arguments of `attribute`; `out` and `progress` are not among them.

    Raises:
        TypeError, ValueError: An argument is not usable.
    """
    usual = {"confidence": 0.95, "logits": None, "device": None}
    request = checked_request(model, x, y, **(usual | arguments))
    times = forecast(
        request.setting, len(arms_in_format(request)), is_exact=request.exact != "none"
    )
    exact, note = allowed(request.exact, times)
    text = times.describe(exact, with_autoattack=request.search == "autoattack")
    return f"{len(request.setting.x)} images, {text}" + ("" if note is None else f". {note}")


def seconds_per_image_and_step(arm: Arm, setting: Setting) -> float:
    """Seconds, from the difference of a long and a short attack on the first images."""
    m = min(_TIMED_IMAGES, len(setting.x), setting.batch_size)
    seconds = []
    for steps in (1, 1, 1 + _TIMED_STEPS):  # the first prepares
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttackWarning)
            attack(
                setting.model,
                setting.x[:m],
                setting.y[:m],
                radius=setting.radius,
                norm=setting.norm,
                box=setting.box,
                steps=steps,
                seed=setting.seed,
                loss=arm.loss,
                accept_probabilities=setting.accept_probabilities,
                format="exact" if arm.is_exact else setting.format,  # type: ignore[arg-type]
                targets=None if setting.targets is None else setting.targets[:m],
                freeze=False,
            )
        seconds.append(time.perf_counter() - started)
    return max(seconds[2] - seconds[1], 0.0) / (m * _TIMED_STEPS)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
