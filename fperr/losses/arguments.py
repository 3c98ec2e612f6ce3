"""Checks of what a loss is given, and its reduction to one value.

Shapes and dtypes are always checked. Numbers are looked at only where they can be: not while
`torch.compile` traces, and not under `torch.func.vmap`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from fperr.emulated_kernels import autocast_dtype

Reduction = Literal["none", "sum", "mean"]
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS = ("none", "sum", "mean")
_FEWEST_CLASSES = 2


def check_logits(logits: Tensor, *, dimensions: int | None = 2) -> None:
    """Check logits (batch, K, ...): their type, dtype and shape, and that they are none of softmax.

    Args:
        logits: The logits.
        dimensions: Number of dimensions; None: at least two.

    Raises:
        TypeError, ValueError: Not floating-point logits of at least one sample and two classes.
    """
    check_logits_type(logits, dimensions=dimensions)
    if logits.numel() == 0:
        raise ValueError(
            f"logits must hold at least one sample, got {tuple(logits.shape)}: leave out empty "
            "batches"
        )
    if is_true(_are_probabilities(logits)):
        raise ValueError(
            "logits must be those of the model, got rows that are not negative and sum to 1: these "
            "are probabilities; give what the model computes before its softmax"
        )


def check_logits_type(logits: Tensor, *, dimensions: int | None = 2) -> None:
    """Check type, dtype and shape of logits (batch, K, ...), of which there may be none.

    Args:
        logits: The logits.
        dimensions: Number of dimensions; None: at least two.

    Raises:
        TypeError, ValueError: Not floating-point logits of at least two classes.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"logits must be a torch.Tensor, got {type(logits).__name__}: give torch.tensor(...)"
        )
    if logits.dtype not in _DTYPES:
        raise ValueError(
            f"logits must be float16, bfloat16, float32 or float64, got {logits.dtype}: convert "
            "them with .float()"
        )
    is_wrong = logits.ndim < 2 if dimensions is None else logits.ndim != dimensions
    if is_wrong or logits.shape[1] < _FEWEST_CLASSES:
        raise ValueError(
            f"logits must be (batch, K) with K >= {_FEWEST_CLASSES}, got {tuple(logits.shape)}: "
            "give one row a sample and one column a class"
        )


def check_classes(name: str, classes: Tensor, logits: Tensor, ignored: int | None = None) -> bool:
    """Check class indices (batch, ...) for logits (batch, K, ...).

    Args:
        name: Name of the argument.
        classes: The indices.
        logits: The logits.
        ignored: Index that stands for no class.

    Returns:
        Whether some may be the ignored index.

    Raises:
        TypeError, ValueError: Not one index below K for each sample.
    """
    if not isinstance(classes, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(classes).__name__}: give torch.tensor(...)"
        )
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise ValueError(
            f"{name} must hold class indices of an integer dtype, got {classes.dtype}: use "
            f"{name}.long(), or {name}.argmax(1) for rows of probabilities"
        )
    shape = (logits.shape[0], *logits.shape[2:])
    if classes.shape != shape:
        raise ValueError(
            f"{name} must be {shape} for logits {tuple(logits.shape)}, got {tuple(classes.shape)}: "
            "give one class a sample"
        )
    is_class = (classes >= 0) & (classes < logits.shape[1])
    if is_true(is_class.all()):
        if ignored is None or not 0 <= ignored < logits.shape[1]:
            return False
        return not is_true((classes != ignored).all())
    if ignored is not None:
        is_class = is_class | (classes.long() == ignored)  # of uint8, -100 would be 156
    if is_true(~is_class.all()):
        low, high = (int(number) for number in classes.aminmax())
        raise ValueError(
            f"{name} must hold classes from 0 to {logits.shape[1] - 1}, got values from {low} to "
            f"{high}: give those of the model's {logits.shape[1]} classes"
        )
    return True


def checked_classes(
    logits: Tensor, y: Tensor | None, targets: Tensor | None
) -> tuple[Tensor, bool]:
    """The classes that an attack's loss uses, (batch,) int64, and whether they are targets.

    Raises:
        TypeError, ValueError: Logits, y or targets do not fit; a target is the true class.
    """
    check_logits(logits)
    if y is not None:
        check_classes("y", y, logits)
    if targets is None:
        if y is None:
            raise TypeError("y must be given, got None: give the true classes, or targets")
        return y.long(), False
    check_classes("targets", targets, logits)
    if y is not None and is_true((targets == y).any()):
        sample = int((targets == y).nonzero()[0])
        raise ValueError(
            f"targets must differ from y, got class {int(y[sample])} for both at sample {sample}: "
            "name another class there"
        )
    return targets.long(), True


def check_values(values: Tensor, logits: Tensor) -> None:
    """Say why a loss is NaN or infinite, where its logits are to blame.

    Args:
        values: Loss of each sample (batch,).
        logits: (batch, K).

    Raises:
        ValueError: Logits are NaN or inf, or all of a sample are -inf.
    """
    if not is_true(~values.isfinite().all()):
        return
    z = logits.detach()
    for rows, found in (
        (z.isnan().any(1), "NaN"),
        ((z == math.inf).any(1), "inf"),
        ((z == -math.inf).all(1), "only -inf, so that every class is masked"),
    ):
        if bool(rows.any()):
            sample = int(rows.nonzero()[0])
            raise ValueError(
                f"logits must be finite, or -inf at masked classes, got {found} at sample "
                f"{sample}: leave such samples out"
            )


def check_reduction(reduction: str) -> None:
    """Refuse a reduction that PyTorch does not have.

    Raises:
        ValueError: It is none of 'none', 'sum' and 'mean'.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}: use "
            "'sum', so that no sample depends on the size of the batch"
        )


def check_number(name: str, number: float, *, least: float, is_above: bool = False) -> float:
    """Check a finite number, at least `least` or above it.

    Raises:
        TypeError, ValueError: It is no such number.
    """
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise TypeError(f"{name} must be a number, got {type(number).__name__}: give a float")
    if not (number > least if is_above else number >= least) or number == math.inf:
        words = "above" if is_above else "at least"
        raise ValueError(
            f"{name} must be finite and {words} {least:g}, got {number}: leave it out for its "
            "usual value"
        )
    return float(number)


def reduced(values: Tensor, reduction: Reduction) -> Tensor:
    """The values (batch,), their sum, or their mean."""
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.mean()


def output_dtype(logits: Tensor) -> torch.dtype:
    """The dtype of a loss of logits: their own; float32 under autocast, as PyTorch's losses."""
    is_autocast = autocast_dtype() is not None or torch.is_autocast_enabled(logits.device.type)
    if is_autocast and logits.dtype != torch.float64:
        return torch.float32
    return logits.dtype


def _are_probabilities(logits: Tensor) -> Tensor:
    """Whether all rows are probabilities other than 0 and 1, as a tensor."""
    z = logits.detach()
    if is_true((z[0] < 0).any()):  # most logits are told by a single row
        return torch.zeros((), dtype=torch.bool, device=logits.device)
    return _look_like_probabilities(z)


def _look_like_probabilities(rows: Tensor) -> Tensor:
    numbers = rows.to(torch.float64)
    # a softmax, computed in float32 as a rule, sums to 1 within K roundings; and each of its
    # numbers is rounded to the dtype, which moves a sum of 1 by u
    of_float32 = torch.finfo(torch.float32).eps / 2
    of_storage = max(torch.finfo(rows.dtype).eps / 2, of_float32)
    most = 4 * (of_storage + rows.shape[1] * of_float32)
    sum_to_one = ((numbers.sum(1) - 1).abs() <= most).all()
    return (numbers >= 0).all() & sum_to_one & ((numbers > 0) & (numbers < 1)).any()


def is_true(condition: Tensor) -> bool:
    """The truth of a condition; False where it cannot be read, or only by waiting for a device.

    On a device PyTorch's kernels themselves refuse a class that there is not, as with its own
    losses.
    """
    if torch.compiler.is_compiling() or condition.device.type != "cpu":
        return False
    try:
        return bool(condition)
    except RuntimeError:  # vmap has one condition for every sample, and reads none
        return False
