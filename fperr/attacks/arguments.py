"""Checked arguments of `attack`: a fault raises at once and says what to do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from fperr import checks, formats
from fperr.attacks.gradient_source import ExactSource, FloatSource, GradientSource
from fperr.losses import Loss, loss_named
from fperr.networks.checks import check_model
from fperr.networks.in_format import device_and_dtype
from fperr.networks.model import Accessor, usable_model
from fperr.theory.scaling import present_classes
from fperr.theory.scenarios import SCENARIOS
from fperr.vocabulary import AttackFormat, Method, Norm, Schedule

FORMATS: tuple[AttackFormat, ...] = get_args(AttackFormat)
METHODS: tuple[Method, ...] = get_args(Method)
NORMS: tuple[Norm, ...] = get_args(Norm)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def loss_in_scenario(loss: str, scenario: str | None) -> str:
    """The name of the loss with its scenario; a loss with a fixed T is the same in all of them.

    Raises:
        ValueError: the loss has no scenarios, or none of that name.
    """
    checks.text("loss", loss)
    if scenario is None:
        return loss
    checks.choice("scenario", scenario, tuple(SCENARIOS))
    if not loss_named(loss).is_scaled or ":scenario" in loss:
        raise ValueError(f"scenario= belongs to (T-)MIFPE losses, got loss {loss!r}: leave it out")
    return f"{loss}:scenario={scenario}" if loss.startswith("tmifpe") else loss


@dataclass(frozen=True, slots=True)
class AttackRequest:
    """A checked attack.

    Attributes:
        loss: Loss that is ascended.
        source: Source of gradients.
        x: Clean inputs (batch, *shape).
        y: True labels (batch,), int64, on the device of x.
        targets: Target classes (batch,), int64, or None.
        clean: Logits at x (batch, K), in the arithmetic of the attack.
    """

    loss: Loss
    source: GradientSource
    x: Tensor
    y: Tensor
    targets: Tensor | None
    clean: Tensor


def checked_request(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: object,
    *,
    loss: str,
    targets: object,
    format: AttackFormat,
    logits: Accessor | str | int | None,
    accept_probabilities: bool,
) -> AttackRequest:
    """Check model, inputs, labels, loss and arithmetic of an attack.

    Raises:
        TypeError, ValueError: an argument is not usable.
        ModelError: the model is random, or its samples depend on each other.
    """
    checks.choice("format", format, FORMATS)
    checks.flag("accept_probabilities", accept_probabilities)
    chosen_loss = loss_named(checks.text("loss", loss))
    usable = usable_model(model, None, logits)
    device, dtype = device_and_dtype(usable)
    inputs = checks.inputs("x", x)
    if device != inputs.device:
        raise ValueError(f"the model is on {device} and x on {inputs.device}: move one of them")
    if format == "tf32" and device.type != "cuda":
        raise ValueError(
            f"format 'tf32' exists on CUDA devices only, and the model is on {device}: move "
            "model and x there, or use format='float32'"
        )
    labels = checks.class_labels("y", y, len(inputs), device)
    target_labels = (
        None if targets is None else checks.class_labels("targets", targets, len(inputs), device)
    )
    if chosen_loss.forced is not None and chosen_loss.forced.targeted != (
        target_labels is not None
    ):
        kind = "untargeted" if target_labels is None else "targeted"
        remedy = "give targets=" if target_labels is None else "leave targets= out"
        raise ValueError(
            f"scenario {chosen_loss.forced.name!r} is none of {kind} attacks: {remedy}, or name "
            "another scenario"
        )
    classes = check_model(usable, inputs.to(dtype), accept_probabilities=accept_probabilities)
    checks.check_classes("y", labels, classes)
    if target_labels is not None:
        checks.check_classes("targets", target_labels, classes)
        checks.check_targets("targets", target_labels, labels)
    needed = chosen_loss.smallest_K(targeted=target_labels is not None)
    if classes < needed:
        raise ValueError(
            f"loss {loss!r} needs at least {needed} classes, the model has {classes}: choose "
            "another loss"
        )
    source = _source(usable, inputs, dtype, chosen_loss, format)
    clean = source.logits(inputs)
    _check_present("y", labels, clean, usable, inputs)
    if target_labels is not None:
        _check_present("targets", target_labels, clean, usable, inputs)
    present = int(present_classes(clean).max())
    if needed > 2 and present < needed and bool(clean.isfinite().any()):
        raise ValueError(
            f"loss {loss!r} needs at least {needed} classes whose logits are not -inf, the model "
            f"has {present}: choose another loss"
        )
    return AttackRequest(chosen_loss, source, inputs, labels, target_labels, clean)


def _source(
    model: nn.Module, x: Tensor, dtype: torch.dtype, loss: Loss, format: str
) -> GradientSource:
    if format != "exact":
        return FloatSource(model, formats.format_named(format))
    if loss.kind == "gama":
        raise ValueError("loss 'gama' has no exact gradient here: choose another loss")
    if dtype != x.dtype:
        raise ValueError(
            f"the model is {dtype} and x {x.dtype}, exact gradients need them alike: convert one, "
            "e.g. x.to(torch.float32)"
        )
    return ExactSource(model, x)


def _check_present(name: str, labels: Tensor, clean: Tensor, model: nn.Module, x: Tensor) -> None:
    """Raise where a label is an absent class: its loss is infinite."""
    samples = torch.nonzero(clean.gather(1, labels[:, None])[:, 0] == -math.inf)[:, 0]
    if len(samples) and clean.dtype == torch.float16:  # a number that overflowed is no absent class
        wider = FloatSource(model, formats.FLOAT32).logits(x.detach()[samples])
        label_logits = wider.gather(1, labels[samples, None])[:, 0]
        samples = samples[label_logits == -math.inf]
    if len(samples):
        first = int(samples[0])
        raise ValueError(
            f"{name} must be classes of finite logits, got class {int(labels[first])} at -inf "
            f"for sample {first} ({len(samples)} such samples): the model never predicts it there; "
            "leave those samples out, or name another class"
        )


def check_radius(radius: float, norm: str, box: tuple[float, float], x: Tensor) -> None:
    """Refuse a ball that contains the whole box, whatever its centre: 8 was given for 8/255.

    Raises:
        ValueError: the radius is too large; says what may be meant.
    """
    width = box[1] - box[0]
    diameter = width * (math.sqrt(x[0].numel()) if norm == "l2" else 1.0)
    if radius <= diameter * (1 + 2.0**-40):  # the square root and the product are rounded
        return
    suggestion = f" Did you mean radius={radius:g}/255?" if radius / 255 < diameter else ""
    raise ValueError(
        f"radius must be at most {diameter:g}, by which the points of box {box} are apart in "
        f"{norm}, got {radius!r}.{suggestion} If x lives in another box, give box=(lowest, highest)"
    )


def check_options(
    radius: float,
    method: str,
    norm: str,
    steps: int,
    seed: int,
    restarts: int,
    schedule: str,
    step_size: float | None,
    momentum: float,
    flags: Mapping[str, bool],
    reduction: str,
    projection: str,
    box: tuple[float, float],
    on_step: object,
    x: object,
) -> None:
    """Check the options of an attack, and that x is in the box, before the model is run.

    Raises:
        TypeError, ValueError: an option is not usable, or x is outside the box.
    """
    for name, value, options in (
        ("method", method, METHODS),
        ("norm", norm, NORMS),
        ("schedule", schedule, SCHEDULES),
        ("reduction", reduction, ("sum", "mean")),
        ("projection", projection, ("exact", "library")),
    ):
        checks.choice(name, value, options)
    checks.whole_number("steps", steps, 1)
    checks.whole_number("restarts", restarts, 1)
    checks.whole_number("seed", seed, 0)
    for name, switch in flags.items():
        checks.flag(name, switch)
    checks.real_number("radius", radius, above=0.0)
    if step_size is not None:
        checks.real_number("step_size", step_size, above=0.0)
    checks.real_number("momentum", momentum, least=0.0, below=1.0)
    if method == "fgsm" and (step_size is not None or restarts != 1):
        raise ValueError("method 'fgsm' is one step of the radius: leave out step_size, restarts")
    if on_step is not None and not callable(on_step):
        raise TypeError(f"on_step must be a function, got {checks.shown(on_step)}: give one")
    low, high = _ends(box)
    inputs = checks.inputs("x", x)
    if not bool(((inputs >= low) & (inputs <= high)).all()):
        broken = int(inputs.isnan().sum())
        contents = (
            f"{broken} NaN" if broken else f"{float(inputs.min())!r} to {float(inputs.max())!r}"
        )
        raise ValueError(
            f"x must lie in the box {(low, high)}, got {contents}: "
            + ("leave those samples out" if broken else "scale it, or give box=(lowest, highest)")
        )
    check_radius(radius, norm, (low, high), inputs)


def _ends(box: object) -> tuple[float, float]:
    if not isinstance(box, Sequence) or isinstance(box, str) or len(box) != 2:
        raise TypeError(f"box must be (lowest, highest), got {checks.shown(box)}: give (0.0, 1.0)")
    low, high = (checks.real_number("box", end) for end in box)
    if not low < high:
        raise ValueError(f"box must be (lowest, highest), got {box}: give the lower end first")
    return low, high
