"""Checked arguments of `measure`: a fault raises at once and says what to do."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fperr import checks
from fperr.exact.precision import (
    MOST_BITS,
    RUNGS,
    bits_for_delta,
    bits_of,
    digits_of,
    engines_from,
)
from fperr.formats import TF32, Format
from fperr.losses import Loss, loss_named
from fperr.networks.checks import number_of_classes
from fperr.networks.in_format import device_and_dtype
from fperr.networks.model import Accessor, usable_model
from fperr.theory.scenarios import SCENARIOS, Scenario
from fperr.vocabulary import ENGINE_CHOICES, EngineChoice, EngineName, JacobianChoice, Reduction

# Neither pixels in [0, 1] nor standardised ones come near it; pixels of 0..255 do.
UNUSUAL_INPUT = 20.0


@dataclass(frozen=True, slots=True)
class MeasureRequest:
    """A checked request.

    Attributes:
        name: Name of the network in the report.
        model: Model on its device, in evaluation mode.
        x: Inputs (n, *shape), in the model's dtype and on its device.
        y, targets: Labels (n,), int64, on that device, or None.
        losses: Losses to measure.
        formats: Formats to measure.
        scenarios: Scenarios to assign labels for, or None if y or targets classify each sample.
        engines: Engines of the exact gradients, from the cheapest.
        engine_choice: Reason for which these engines are taken.
        digits: Correct decimal digits of the exact gradients; None: those that each format needs.
        certify: Whether to prove an interval for delta.
        jacobian: `"rows"` or `"products"`.
        mean: Whether the losses of a batch are averaged; otherwise they are added.
        loss_scale: Factor on the loss.
        autocast: Whether half formats run under autocast.
        batch_size: Number of samples in a batch of the format's run.
        batch_size_is_asked_for: Whether the user gave the batch size.
        classes: Number of classes K.
        max_seconds: Seconds after which no more balls are computed; None: no limit.
    """

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor | None
    targets: Tensor | None
    losses: tuple[Loss, ...]
    formats: tuple[Format, ...]
    scenarios: tuple[Scenario, ...] | None
    engines: tuple[EngineName, ...]
    engine_choice: str
    digits: int | None
    certify: bool
    jacobian: str
    mean: bool
    loss_scale: float
    autocast: bool
    batch_size: int
    batch_size_is_asked_for: bool
    classes: int
    max_seconds: float | None

    def bits_for(self, fmt: Format) -> int:
        """The bits of the exact gradient that a format's delta needs, or that were asked for."""
        return bits_for_delta(fmt.unit_roundoff) if self.digits is None else bits_of(self.digits)

    def batches(self) -> list[slice]:
        """The batches, in order; the last may be smaller."""
        starts = range(0, len(self.x), self.batch_size)
        return [slice(s, min(s + self.batch_size, len(self.x))) for s in starts]


def checked_request(
    *,
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Any,
    targets: Any,
    losses: Sequence[str],
    formats: Sequence[str | Format],
    scenarios: str | Sequence[str] | None = None,
    engine: EngineChoice = "auto",
    digits: int | None = None,
    certify: bool = False,
    jacobian: JacobianChoice = "auto",
    reduction: Reduction = "sum",
    loss_scale: float = 1.0,
    autocast: bool = False,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    logits: Accessor | str | int | None = None,
    accept_probabilities: bool = False,
    name: str | None = None,
    max_seconds: float | None = None,
) -> MeasureRequest:
    """Check the arguments of `fperr.measure`.

    Raises:
        TypeError, ValueError: an argument is not usable: expected, got, remedy.
    """
    for option, value in (
        ("certify", certify),
        ("autocast", autocast),
        ("accept_probabilities", accept_probabilities),
    ):
        checks.flag(option, value)
    usable = usable_model(model, device, logits)
    where, dtype = device_and_dtype(usable)
    inputs = checks.inputs("x", x).to(where, dtype)
    _warn_of_range(inputs)
    classes = number_of_classes(usable, inputs, accept_probabilities=accept_probabilities)
    n = len(inputs)
    y_, targets_ = (
        None if values is None else checks.class_labels(argument, values, n, where)
        for argument, values in (("y", y), ("targets", targets))
    )
    for argument, labels in (("y", y_), ("targets", targets_)):
        if labels is not None:
            checks.check_classes(argument, labels, classes)
    if y_ is not None and targets_ is not None:
        checks.check_targets("targets", targets_, y_)
    scenarios_ = _checked_scenarios(scenarios, y_ is not None, targets_ is not None)
    losses_ = tuple(loss_named(name) for name in checks.distinct_names("losses", losses))
    _check_class_counts(losses_, scenarios_, targets_ is not None, y_ is not None, classes)
    formats_ = tuple(checks.formats_of("formats", formats))
    if TF32 in formats_ and where.type != "cuda":
        raise ValueError(
            f"format 'tf32' exists on CUDA devices only, and the model is on {where}: "
            "move it there with device='cuda', or leave 'tf32' out"
        )
    checks.choice("reduction", reduction, ("sum", "mean"))
    loss_scale = checks.real_number("loss_scale", loss_scale, above=0.0)
    if batch_size is not None:
        batch_size = checks.whole_number("batch_size", batch_size, 1)
    if autocast and dtype != torch.float32:
        raise ValueError(
            f"autocast=True needs a float32 model, got {dtype}: torch.autocast leaves its "
            "operations alone, and float16 would be measured in name only"
        )
    if autocast and any(f.emulation is not None for f in formats_):
        raise ValueError(
            "autocast=True runs a device's own kernels, and formats= names emulated ones: leave "
            "autocast out, or take 'float16' or 'bfloat16'"
        )
    checks.choice("engine", engine, ENGINE_CHOICES)
    digits = _checked_digits(digits, engine, formats_)
    engines, reason = _chosen_engines(engine, certify=certify)
    if max_seconds is not None:
        max_seconds = checks.real_number("max_seconds", max_seconds, above=0.0)
    checks.choice("jacobian", jacobian, ("auto", "rows", "products"))
    if jacobian == "auto":
        labellings = 1 if scenarios_ is None else len({s.label_leads for s in scenarios_})
        products = labellings * len(losses_) * len(formats_)
        most_rows = max(products, 2 * labellings * len(losses_))
        jacobian = "rows" if classes <= most_rows else "products"
    return MeasureRequest(
        checks.class_name(model) if name is None else checks.text("name", name),
        usable,
        inputs,
        y_,
        targets_,
        losses_,
        formats_,
        scenarios_,
        engines,
        reason,
        digits,
        certify,
        jacobian,
        reduction == "mean",
        loss_scale,
        autocast,
        min(batch_size or 64, n),
        batch_size is not None,
        classes,
        max_seconds,
    )


def _checked_digits(
    digits: int | None, engine: EngineChoice, formats: Sequence[Format]
) -> int | None:
    """Check that digits resolve the errors of the formats, and that the engine may give them."""
    if digits is None:
        return None
    digits = checks.whole_number("digits", digits, 1)
    least = math.floor(digits_of(max(bits_for_delta(fmt.unit_roundoff) for fmt in formats)))
    if digits < least:
        raise ValueError(
            f"digits must be at least {least} to resolve the errors of these formats, "
            f"got {digits}: leave it out, or give more"
        )
    if engine in ("float64", "double_word") and bits_of(digits) > MOST_BITS[engine]:
        raise ValueError(
            f"engine={engine!r} gives at most {math.floor(digits_of(MOST_BITS[engine]))} digits, "
            f"got {digits}: use 'ball', or leave digits out"
        )
    return digits


def _chosen_engines(engine: EngineChoice, *, certify: bool) -> tuple[tuple[EngineName, ...], str]:
    """Choose the engines; returns their names and the reason for the choice."""
    if certify and engine not in ("auto", "ball"):
        raise ValueError(f"certify=True needs the balls: leave it out, or engine={engine!r}")
    if certify:
        return engines_from("ball"), "they prove the interval that was asked for"
    if engine != "auto":
        return engines_from(engine), "asked for"
    return RUNGS, "the cheapest one that gives each format the bits that its delta needs"


def _warn_of_range(x: Tensor) -> None:
    low, high = (float(v) for v in x.nan_to_num(0.0, 0.0, 0.0).aminmax())
    if max(-low, high) > UNUSUAL_INPUT:
        warnings.warn(
            f"x ranges from {low:g} to {high:g}, but image models usually take [0, 1] or "
            "standardised values: check that x is in the model's domain",
            stacklevel=5,
        )


def _checked_scenarios(
    scenarios: str | Sequence[str] | None, has_y: bool, has_targets: bool
) -> tuple[Scenario, ...] | None:
    labels_argument = "y" if has_y else "targets" if has_targets else None
    if scenarios is None:
        scenarios = "observed" if labels_argument else "all"
    if scenarios == "observed":
        if labels_argument is None:
            raise ValueError("scenarios='observed' needs y or targets: give one, or use 'all'")
        return None
    if labels_argument is not None:
        raise ValueError(
            f"scenarios={scenarios!r} assigns the labels, but {labels_argument} is given too: "
            f"leave {labels_argument} out, or use scenarios='observed'"
        )
    if scenarios == "all":
        return tuple(SCENARIOS.values())
    names = (
        [scenarios] if isinstance(scenarios, str) else checks.distinct_names("scenarios", scenarios)
    )
    for name in names:
        if name not in SCENARIOS:
            raise ValueError(
                f"unknown scenario {name!r}: expected 'all', 'observed', or some of "
                f"{', '.join(SCENARIOS)}"
            )
    return tuple(SCENARIOS[name] for name in names)


def _check_class_counts(
    losses: Iterable[Loss],
    scenarios: tuple[Scenario, ...] | None,
    has_targets: bool,
    has_y: bool,
    classes: int,
) -> None:
    targeted = has_targets if scenarios is None else any(s.targeted for s in scenarios)
    for loss in losses:
        if loss.is_for_attacks_only:
            raise ValueError(f"loss {loss.name!r} compares points of an attack: use fperr.attack")
        if classes < loss.smallest_K(targeted=targeted):
            raise ValueError(
                f"loss {loss.name!r} needs at least {loss.smallest_K(targeted=targeted)} classes "
                f"here, the model has {classes}: leave it out"
            )
        if loss.kind == "dlr" and scenarios is None and has_targets and not has_y:
            raise ValueError("targeted 'dlr' needs the true label: give y as well as targets")
