"""Checked arguments of the bounds: a fault raises at once and says what to do."""

import math

import torch
from torch import Tensor

from fperr import checks
from fperr.formats import Format, format_named, of_dtype
from fperr.kernel_switches import keeps_subnormals


def format_of(format: Format | str) -> Format:
    """The format of that name, or the `Format` itself.

    Raises:
        TypeError: neither a name nor a `Format`.
        ValueError: no such format, or one whose kernels are emulated: no kernel of this machine
            computes as it says.
    """
    if isinstance(format, str):
        format = format_named(format)
    if not isinstance(format, Format):
        raise TypeError(
            f"format must be a name or a fperr.formats.Format, got {format!r}: give e.g. 'float16'"
        )
    if format.emulation is not None:
        plain = of_dtype(format.dtype).name
        raise ValueError(
            f"format must be one whose own kernels run, got {format.name!r}: bounds are of a "
            f"kernel, so give {plain!r}, and kernel='cuda' where that is meant"
        )
    return format


def check_labels(z: Tensor, label: Tensor, name: str = "labels", logits: str = "logits") -> None:
    """Raise unless z is (batch, K), K >= 2, and label is (batch,) int64 in range.

    Args:
        z: Logits (batch, K).
        label: Classes (batch,).
        name: Name of the labels in errors.
        logits: Name of z in errors.

    Raises:
        TypeError: z or label is no tensor.
        ValueError: a shape, a dtype or a number does not fit.
    """
    checks.logits(logits, z)
    if not isinstance(label, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(label).__name__}: give torch.tensor([...])"
        )
    if label.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, got {label.dtype}: use .long()")
    if label.device != z.device:
        raise ValueError(
            f"{name} is on {label.device} and {logits} on {z.device}: move one of them"
        )
    checks.class_labels(name, label, len(z), z.device)
    if len(z):
        checks.check_classes(name, label, z.shape[1])


def checked_arguments(
    z: Tensor, label: Tensor, c: Tensor | float, upstream: float, format: Format | str | None
) -> tuple[Format, Tensor, Tensor]:
    """Check the arguments that all bounds on logit gradients share.

    Returns:
        The format that stores the logits, c as (batch, 1) float64, and z without a graph.

    Raises:
        TypeError: a type is wrong.
        ValueError: the arguments do not fit together, or subnormal numbers are flushed to zero.
    """
    check_labels(z, label)
    stored = of_dtype(z.dtype)
    requested = None if format is None else format_of(format)
    if requested is not None and requested.dtype != z.dtype:
        raise ValueError(
            f"format {requested.name} stores {requested.dtype}, but logits are {z.dtype}: round "
            f"them first, as in logits.to({requested.dtype})"
        )
    if not keeps_subnormals(z.device):
        raise ValueError(
            "subnormal numbers are flushed to zero, and the bound counts on gradual underflow: "
            "undo torch.set_flush_denormal(True)"
        )
    scale = torch.as_tensor(c, dtype=torch.float64, device=z.device)
    if scale.shape not in ((), (len(z),)):
        raise ValueError(f"c must be a number or ({len(z)},), got {tuple(scale.shape)}")
    if not bool(((scale > 0) & scale.isfinite()).all()):
        raise ValueError("c must hold positive finite numbers")
    a = abs(upstream)
    for name, number in (("c", scale), ("upstream", torch.tensor(a, dtype=torch.float64))):
        if bool((number.to(z.dtype).to(torch.float64) != number).any()):
            raise ValueError(f"{name} must be held by {stored.name} exactly: round it first")
    if not 0 < a < math.inf:
        raise ValueError(f"upstream must be a finite number other than 0, got {upstream!r}")
    z, scale = z.detach(), scale.expand(len(z))[:, None]
    size = z.abs().masked_fill(z == -math.inf, 0.0)  # an absent class
    if not bool(size.isfinite().all()) or bool((scale * size > stored.largest / 4).any()):
        raise ValueError(
            "logits must be finite, or -inf where a class is absent, and c times them below a "
            f"quarter of {stored.largest:.3g}"
        )
    if len(z) and a * max(1.0, float(scale.max())) > stored.largest:
        raise ValueError(f"upstream * c overflows {stored.name}: the gradient may be infinite")
    return stored, scale, z
