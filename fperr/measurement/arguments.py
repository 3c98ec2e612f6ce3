"""What `measure` was asked to do, checked: a fault raises at once and says what to do."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fperr.exact.engine import choose_engine
from fperr.formats import BFLOAT16, FLOAT16, TF32, Format
from fperr.formats import named as format_named
from fperr.measurement.costs import cheapest
from fperr.measurement.models import (
    Accessor,
    multiply_adds,
    number_of_classes,
    usable_model,
)
from fperr.measurement.network import device_and_dtype
from fperr.theory.losses import Loss
from fperr.theory.losses import named as loss_named
from fperr.theory.scenarios import SCENARIOS, Scenario

# float64 errors are about 1e-16: below this the reference would not resolve them
# neither pixels in [0, 1] nor standardised ones come near it; pixels of 0..255 do
UNUSUAL_INPUT = 20.0
# Default digits: pairs of float64 prove about 25 on ordinary networks, and half formats need fewer.
DIGITS, WORD_DIGITS, WORD_DIGITS_OF_HALF = 50, 20, 10
MOST_WORD_DIGITS = 24


@dataclass(frozen=True, slots=True)
class Job:
    """A checked request.

    Attributes:
        name: what the report calls the network.
        model: on its device, in evaluation mode.
        x: (n, *shape), in the model's dtype and on its device.
        y, target: (n,) int64 on that device, or None.
        scenarios: the ones to assign labels for, or None to classify y or target.
        engine: the reference engine; `engine_choice` says why.
        digits: correct decimal digits of the reference.
        certify: prove an interval for delta.
        jacobian: `"rows"` or `"products"`.
        mean: average the losses of a batch instead of adding them.
        loss_scale: factor on the loss.
        autocast: run half formats under autocast.
        batch_size: samples in a batch of the format's run.
        batch_size_is_asked_for: it was given, and is not the default.
    """

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor | None
    target: Tensor | None
    losses: tuple[Loss, ...]
    formats: tuple[Format, ...]
    scenarios: tuple[Scenario, ...] | None
    engine: str
    engine_choice: str
    digits: int
    certify: bool
    jacobian: str
    mean: bool
    loss_scale: float
    autocast: bool
    batch_size: int
    batch_size_is_asked_for: bool
    classes: int

    def batches(self) -> list[slice]:
        """The batches, in order; the last may be smaller."""
        starts = range(0, len(self.x), self.batch_size)
        return [slice(s, min(s + self.batch_size, len(self.x))) for s in starts]


def checked_job(
    *,
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Any,
    target: Any,
    losses: Sequence[str],
    formats: Sequence[str],
    scenarios: str | Sequence[str] | None = None,
    reference: str = "auto",
    digits: int | None = None,
    certify: bool = False,
    jacobian: str = "auto",
    reduction: str = "sum",
    loss_scale: float = 1.0,
    autocast: bool = False,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    logits: Accessor | None = None,
    accept_probabilities: bool = False,
    name: str | None = None,
) -> Job:
    """The request, checked; arguments as for `fperr.measure`.

    Raises:
        TypeError, ValueError: an argument is not usable: expected, got, remedy.
    """
    usable = usable_model(model, device, logits)
    where, dtype = device_and_dtype(usable)
    inputs = _checked_x(x).to(where, dtype)
    classes = number_of_classes(usable, inputs, accept_probabilities=accept_probabilities)
    n = len(inputs)
    y_ = _checked_classes("y", y, n, classes, where)
    target_ = _checked_classes("target", target, n, classes, where)
    if y_ is not None and target_ is not None and bool((y_ == target_).any()):
        sample = int((y_ == target_).nonzero()[0])
        raise ValueError(
            f"target equals y at sample {sample} (class {int(y_[sample])}): "
            "a targeted attack needs a target other than the true label"
        )
    chosen = _checked_scenarios(scenarios, y_ is not None, target_ is not None)
    losses_ = tuple(loss_named(name) for name in _names("losses", losses))
    _check_class_counts(losses_, chosen, target_ is not None, y_ is not None, classes)
    formats_ = tuple(format_named(name) for name in _names("formats", formats))
    if TF32 in formats_ and where.type != "cuda":
        raise ValueError(
            f"format 'tf32' exists on CUDA devices only, and the model is on {where}: "
            "move it there with device='cuda', or leave 'tf32' out"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    if not 0 < loss_scale < math.inf:
        raise ValueError(f"loss_scale must be a positive finite number, got {loss_scale!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if autocast and dtype != torch.float32:
        raise ValueError(
            f"autocast=True needs a float32 model, got {dtype}: torch.autocast leaves its "
            "operations alone, and float16 would be measured in name only"
        )
    half = all(f in (FLOAT16, BFLOAT16) for f in formats_)
    _check_digits(digits, reference, half=half)
    engine, why = _checked_engine(reference, usable, inputs, digits, certify=certify)
    if digits is None:
        word_digits = WORD_DIGITS_OF_HALF if half else WORD_DIGITS
        digits = word_digits if engine == "multiword" else DIGITS
    if jacobian not in ("auto", "rows", "products"):
        raise ValueError(f"jacobian must be 'auto', 'rows' or 'products', got {jacobian!r}")
    if jacobian == "auto":
        labels = 1 if chosen is None else len({s.label_leads for s in chosen})
        products = labels * len(losses_) * len(formats_)
        jacobian = "rows" if classes <= max(products, 2 * labels * len(losses_)) else "products"
    return Job(
        name or type(model).__name__,
        usable,
        inputs,
        y_,
        target_,
        losses_,
        formats_,
        chosen,
        engine,
        why,
        digits,
        certify,
        jacobian,
        reduction == "mean",
        float(loss_scale),
        autocast,
        min(batch_size or 64, n),
        batch_size is not None,
        classes,
    )


def _check_digits(digits: int | None, reference: str, *, half: bool) -> None:
    least = WORD_DIGITS_OF_HALF if half else WORD_DIGITS
    if digits is not None and (not isinstance(digits, int) or digits < least):
        raise ValueError(
            f"digits must be at least {least} to resolve the errors of these formats, "
            f"got {digits!r}"
        )
    if reference == "multiword" and digits is not None and digits > MOST_WORD_DIGITS:
        raise ValueError(
            f"reference='multiword' gives at most {MOST_WORD_DIGITS} digits, got {digits}: use "
            "'ball', or leave digits out"
        )


def _checked_engine(
    reference: str, model: nn.Module, x: Tensor, digits: int | None, *, certify: bool
) -> tuple[str, str]:
    """The engine and why it was chosen."""
    engine = choose_engine(reference)
    if certify and engine in ("mpmath", "multiword"):
        raise ValueError(f"certify=True needs the balls: leave it out, or reference={engine!r}")
    if engine != "auto":
        return engine, "asked for"
    if certify:
        return "ball", "it proves the interval that was asked for"
    many = digits is not None and digits > MOST_WORD_DIGITS
    candidates = ("mpmath", "ball") if many else ("mpmath", "ball", "multiword")
    where = str(x.device)
    return cheapest(model, multiply_adds(model, x[:1]), len(x), where, candidates)


def _checked_x(x: Tensor | np.ndarray) -> Tensor:
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"x must be a tensor or a NumPy array, got {type(x).__name__}")
    tensor = torch.as_tensor(x).detach()
    if not tensor.is_floating_point():
        raise ValueError(
            f"x must be floating point in the model's domain, got {tensor.dtype}: "
            "convert it, e.g. x.float() / 255 for pixels of 0..255"
        )
    if tensor.ndim < 2 or tensor.numel() == 0:
        raise ValueError(
            f"x must be a batch (n, *shape) of at least one sample, got shape {tuple(tensor.shape)}"
            + (": add a batch dimension with x[None]" if tensor.ndim == 1 else "")
        )
    low, high = (float(v) for v in tensor.nan_to_num(0.0, 0.0, 0.0).aminmax())
    if max(-low, high) > UNUSUAL_INPUT:
        warnings.warn(
            f"x ranges from {low:g} to {high:g}, but image models usually take [0, 1] or "
            "standardised values: check that x is in the model's domain",
            stacklevel=4,
        )
    return tensor


def _checked_classes(
    name: str, given: Any, n: int, classes: int, device: torch.device
) -> Tensor | None:
    if given is None:
        return None
    labels = torch.as_tensor(given).detach()
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must hold integer class indices, got {labels.dtype}: use .long()")
    if labels.shape != (n,):
        raise ValueError(
            f"{name} must have shape ({n},), one class for each sample of x, "
            f"got {tuple(labels.shape)}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name} must hold classes from 0 to {classes - 1}, got values from {low} to {high}"
        )
    return labels.to(device, torch.int64)


def _checked_scenarios(
    scenarios: str | Sequence[str] | None, has_y: bool, has_target: bool
) -> tuple[Scenario, ...] | None:
    given = "y" if has_y else "target" if has_target else None
    if scenarios is None:
        scenarios = "observed" if given else "all"
    if scenarios == "observed":
        if given is None:
            raise ValueError("scenarios='observed' needs y or target: give one, or use 'all'")
        return None
    if given is not None:
        raise ValueError(
            f"scenarios={scenarios!r} assigns the labels, but {given} is given too: "
            f"leave {given} out, or use scenarios='observed'"
        )
    if scenarios == "all":
        return tuple(SCENARIOS.values())
    names = [scenarios] if isinstance(scenarios, str) else _names("scenarios", scenarios)
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
    has_target: bool,
    has_y: bool,
    classes: int,
) -> None:
    targeted = has_target if scenarios is None else any(s.targeted for s in scenarios)
    for loss in losses:
        if loss.kind == "gama":
            raise ValueError("loss 'gama' compares points of an attack: use fperr.attack")
        if classes < loss.smallest_K(targeted=targeted):
            raise ValueError(
                f"loss {loss.name!r} needs at least {loss.smallest_K(targeted=targeted)} classes "
                f"here, the model has {classes}: leave it out"
            )
        if loss.kind == "dlr" and scenarios is None and has_target and not has_y:
            raise ValueError("targeted 'dlr' needs the true label: give y as well as target")


def _names(what: str, names: Sequence[str]) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"{what} must be a sequence of names, got the string {names!r}: use a list")
    listed = list(names)
    if not all(isinstance(name, str) for name in listed):
        raise TypeError(f"{what} must hold names, got {listed}")
    if not listed:
        raise ValueError(f"{what} is empty: name at least one")
    if len(set(listed)) < len(listed):
        raise ValueError(f"{what} names something twice: {listed}, leave one out")
    return listed
