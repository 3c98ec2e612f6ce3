"""Checked arguments of `attribute`."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fperr import checks
from fperr.attacks.options import AttackOptions
from fperr.attribution.arms import Setting
from fperr.attribution.autoattack import check_library
from fperr.formats import Format
from fperr.networks.checks import number_of_classes
from fperr.networks.in_format import device_and_dtype
from fperr.networks.model import Accessor, usable_model
from fperr.vocabulary import FormatName, Norm

ExactChoice = Literal["auto", "all", "sample", "none"]
EXACT_CHOICES: tuple[ExactChoice, ...] = get_args(ExactChoice)
SearchChoice = Literal["restarts", "autoattack"]
SEARCH_CHOICES: tuple[SearchChoice, ...] = get_args(SearchChoice)


@dataclass(frozen=True, slots=True)
class AttributionRequest:
    """A checked call of `attribute`.

    Attributes:
        setting: What all arms have in common.
        exact: How many images get exact gradients.
        search: What the floor is made of; None: there is none.
        has_ladder: Whether the ladder from cross-entropy to stable cross-entropy is climbed.
        confidence: Confidence of the intervals.
        name: Name of the network.
    """

    setting: Setting
    exact: ExactChoice
    search: SearchChoice | None
    has_ladder: bool
    confidence: float
    name: str


def checked_request(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: object,
    *,
    radius: float,
    norm: Norm,
    steps: int,
    starts: int,
    format: FormatName | Format,
    targets: object,
    exact: ExactChoice,
    search: SearchChoice | None,
    why: bool,
    confidence: float,
    seed: int,
    box: tuple[float, float],
    batch_size: int,
    logits: Accessor | str | int | None,
    accept_probabilities: bool,
    device: str | torch.device | None,
    name: str | None,
) -> AttributionRequest:
    """Check the arguments of `attribute`; those of the attack itself are checked by it.

    Raises:
        TypeError, ValueError: An argument is not usable.
        MissingDataError: AutoAttack is asked for and not installed.
    """
    checks.format_of("format", format)
    checks.choice("exact", exact, EXACT_CHOICES)
    if search is not None:
        checks.choice("search", search, SEARCH_CHOICES)
    checks.whole_number("starts", starts, 1)
    checks.whole_number("batch_size", batch_size, 1)
    checks.flag("why", why)
    checks.flag("accept_probabilities", accept_probabilities)
    checks.real_number("confidence", confidence, above=0.5, below=1.0)
    called = checks.class_name(model) if name is None else checks.text("name", name)
    options = AttackOptions(
        radius, "pgd", norm, steps, seed, 1, "cosine", None, 0.0, True, True, "sum", "exact", box,
        None,
    )  # fmt: skip
    options.check_inputs(x)
    usable = usable_model(model, device, logits)
    inputs = checks.inputs("x", x)
    if device is not None:
        inputs = inputs.to(device_and_dtype(usable)[0])
    labels = checks.class_labels("y", y, len(inputs), inputs.device)
    classes = number_of_classes(
        usable, inputs.to(device_and_dtype(usable)[1]), accept_probabilities=accept_probabilities
    )
    checks.check_classes("y", labels, classes)
    goals = None
    if targets is not None:
        goals = checks.class_labels("targets", targets, len(inputs), inputs.device)
        checks.check_classes("targets", goals, classes)
        checks.check_targets("targets", goals, labels)
        if search == "autoattack":
            raise ValueError(
                "search must be None or 'restarts' with targets, got 'autoattack': it reaches any "
                "class"
            )
    if search == "autoattack":
        check_library()
        if (not math.isclose(box[0], 0.0)) or (not math.isclose(box[1], 1.0)):
            raise ValueError(
                f"box must be (0, 1) with search='autoattack', got {box}: give search='restarts'"
            )
    setting = Setting(
        usable, inputs, labels, goals, float(radius), norm, (float(box[0]), float(box[1])), steps,
        starts, format, seed, batch_size, accept_probabilities,
    )  # fmt: skip
    return AttributionRequest(setting, exact, search, why, float(confidence), called)
