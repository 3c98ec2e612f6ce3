"""What `attack` was asked to do, checked: a fault raises at once and says what to do."""

import math

import torch
from torch import Tensor, nn

from fperr import formats
from fperr.attacks.gradients import ExactSource, FloatSource, Source
from fperr.measurement.models import usable_model
from fperr.measurement.network import device_and_dtype
from fperr.theory.losses import Loss, named
from fperr.theory.scaling import present_classes

ARITHMETICS = (*formats.FORMATS, "exact")
METHODS = ("pgd", "fgsm", "apgd")


def forced(loss: str, scenario: str | None) -> str:
    """The name of the loss with its scenario; a fixed T is the same in every one.

    Raises:
        ValueError: the loss has no scenarios, or none of that name.
    """
    if scenario is None:
        return loss
    if not named(loss).is_scaled or ":scenario" in loss:
        raise ValueError(f"scenario= belongs to (T-)MIFPE losses, got loss {loss!r}: leave it out")
    named(f"tmifpe:scenario={scenario}")  # raises for a name that is none
    return f"{loss}:scenario={scenario}" if loss.startswith("tmifpe") else loss


def checked(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float,
    method: str,
    loss: str,
    norm: str,
    steps: int,
    targets: Tensor | None,
    arithmetic: str,
) -> tuple[Loss, Source, Tensor]:
    """The loss, the source of gradients, and the clean logits.

    Raises:
        TypeError, ValueError: an argument is not usable.
    """
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be a positive finite number, got {radius!r}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number from 1 on, got {steps!r}")
    for name, value, known in (
        ("method", method, METHODS),
        ("norm", norm, ("linf", "l2")),
        ("arithmetic", arithmetic, ARITHMETICS),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(known)}")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise ValueError("x must be a floating-point tensor (batch, *shape) with samples in it")
    model = usable_model(model, None, None)
    device, dtype = device_and_dtype(model)
    if device != x.device:
        raise ValueError(f"the model is on {device} and x on {x.device}: move one of them")
    if arithmetic == "tf32" and device.type != "cuda":
        raise ValueError(
            f"arithmetic 'tf32' exists on CUDA devices only, and the model is on {device}: move it "
            "and x there, or use arithmetic='float32'"
        )
    chosen = named(loss)
    if chosen.forced is not None and chosen.forced.targeted != (targets is not None):
        kind = "untargeted" if targets is None else "targeted"
        raise ValueError(f"scenario {chosen.forced.name!r} is none of {kind} attacks")
    if arithmetic == "exact":
        if chosen.kind == "gama":
            raise ValueError("loss 'gama' has no exact gradient here: choose another loss")
        if dtype != x.dtype:
            raise ValueError(f"the model is {dtype} and x {x.dtype}: exact needs them alike")
        source: Source = ExactSource(model, x)
    else:
        source = FloatSource(model, formats.named(arithmetic))
    clean = source.logits(x.detach())
    classes = _classes(clean)
    _check_labels("y", y, x, classes)
    _check_present("y", y, clean, model, x)
    if targets is not None:
        _check_labels("targets", targets, x, classes)
        if bool((targets == y).any()):
            raise ValueError("targets must differ from y: a sample's own class is no target")
        _check_present("targets", targets, clean, model, x)
    needed = chosen.smallest_K(targeted=targets is not None)
    if classes < needed:
        raise ValueError(f"loss {loss!r} needs at least {needed} classes, the model has {classes}")
    present = int(present_classes(clean).max())
    if needed > 2 and present < needed:
        raise ValueError(
            f"loss {loss!r} needs at least {needed} classes whose logits are not -inf, the model "
            f"has {present}: choose another loss"
        )
    return chosen, source, clean


def _classes(logits: Tensor) -> int:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"the model must return logits (batch, K), got {tuple(logits.shape)}")
    return logits.shape[1]


def _check_labels(name: str, labels: Tensor, x: Tensor, classes: int) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(labels).__name__}: torch.tensor(...)")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{name} must be ({len(x)},) int64, got {tuple(labels.shape)} {labels.dtype}"
        )
    if labels.device != x.device:
        raise ValueError(f"{name} is on {labels.device} and x on {x.device}: move one of them")
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"{name} must be between 0 and {classes - 1}")


def _check_present(name: str, labels: Tensor, clean: Tensor, model: nn.Module, x: Tensor) -> None:
    """Raise where a label is an absent class: its loss is infinite."""
    samples = torch.nonzero(clean.gather(1, labels[:, None])[:, 0] == -math.inf)[:, 0]
    if len(samples) and clean.dtype == torch.float16:  # a number that overflowed is no absent class
        wider = FloatSource(model, formats.FLOAT32).logits(x.detach()[samples])
        own = wider.gather(1, labels[samples, None])[:, 0]
        samples = samples[own == -math.inf]
    if len(samples):
        first = int(samples[0])
        raise ValueError(
            f"{name} must be classes of finite logits, got class {int(labels[first])} at -inf "
            f"for sample {first} ({len(samples)} such samples): the model never predicts it there; "
            "leave those samples out, or name another class"
        )


def check_radius(radius: float, norm: str, box: tuple[float, float], x: Tensor) -> None:
    """Refuse a ball that holds more than the box around every point of it: an eight for 8/255.

    Raises:
        ValueError: says what may be meant.
    """
    width = box[1] - box[0]
    apart = width * (math.sqrt(x[0].numel()) if norm == "l2" else 1.0)
    if radius <= apart * (1 + 2.0**-40):  # the square root and the product are rounded
        return
    meant = f" Did you mean radius={radius:g}/255?" if radius / 255 < apart else ""
    raise ValueError(
        f"radius must be at most {apart:g}, by which the points of box {box} are apart in {norm}, "
        f"got {radius!r}.{meant} If x lives in another box, give box=(lowest, highest)"
    )


def check_options(
    restarts: int,
    schedule: str,
    step_size: float | None,
    momentum: float,
    reduction: str,
    projection: str,
    box: tuple[float, float],
    x: Tensor,
) -> None:
    """How the attack goes.

    Raises:
        ValueError: an option is not usable, or x is outside the box.
    """
    for name, value, known in (
        ("schedule", schedule, ("cosine", "linear", "constant")),
        ("reduction", reduction, ("sum", "mean")),
        ("projection", projection, ("exact", "library")),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(known)}")
    if not isinstance(restarts, int) or restarts < 1:
        raise ValueError(f"restarts must be at least 1, got {restarts!r}")
    if not box[0] < box[1]:
        raise ValueError(f"box must be (lowest, highest), got {box}")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be a positive finite number, got {step_size!r}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be from 0 to below 1, got {momentum!r}")
    if not bool(((x >= box[0]) & (x <= box[1])).all()):
        raise ValueError(
            f"x must lie in the box {box}, got {float(x.min())} to {float(x.max())}: scale it, or "
            "give box=(lowest, highest)"
        )
