"""Checked arguments of `attack`: a fault raises at once and says what to do."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fperr import checks, formats
from fperr.attacks.gradient_source import ExactSource, FloatSource, GradientSource
from fperr.formats import Format
from fperr.losses import Loss, loss_named
from fperr.networks.checks import check_model
from fperr.networks.in_format import device_and_dtype
from fperr.networks.model import Accessor, usable_model
from fperr.theory.scaling import present_classes
from fperr.theory.scenarios import SCENARIOS
from fperr.vocabulary import ATTACK_FORMATS, AttackFormat


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
    format: AttackFormat | Format,
    logits: Accessor | str | int | None,
    accept_probabilities: bool,
    device: str | torch.device | None,
) -> AttackRequest:
    """Check model, inputs, labels, loss and arithmetic of an attack.

    Raises:
        TypeError, ValueError: an argument is not usable.
        ModelError: the model is random, or its samples depend on each other.
    """
    fmt = None if format == "exact" else checks.format_of("format", format, ATTACK_FORMATS)
    checks.flag("accept_probabilities", accept_probabilities)
    chosen_loss = loss_named(checks.text("loss", loss))
    usable = usable_model(model, device, logits)
    where, dtype = device_and_dtype(usable)
    inputs = checks.inputs("x", x)
    if device is not None:
        inputs = inputs.to(where)
    if where != inputs.device:
        raise ValueError(
            f"the model is on {where} and x on {inputs.device}: give device={str(where)!r}, or "
            "move one of them"
        )
    if fmt == formats.TF32 and where.type != "cuda":
        raise ValueError(
            f"format 'tf32' exists on CUDA devices only, and the model is on {where}: move "
            "model and x there, or use format='float32'"
        )
    labels = checks.class_labels("y", y, len(inputs), where)
    target_labels = (
        None if targets is None else checks.class_labels("targets", targets, len(inputs), where)
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
    source = _source(usable, inputs, dtype, chosen_loss, fmt)
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
    model: nn.Module, x: Tensor, dtype: torch.dtype, loss: Loss, fmt: Format | None
) -> GradientSource:
    if fmt is not None:
        return FloatSource(model, fmt)
    if loss.is_for_attacks_only:
        raise ValueError(f"loss {loss.name!r} has no exact gradient here: choose another loss")
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
