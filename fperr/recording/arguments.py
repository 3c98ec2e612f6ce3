"""Arguments of `record`, checked before the attack starts, as far as they can be."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fperr import checks
from fperr.losses import LossFunction, loss_named
from fperr.networks.checks import number_of_classes
from fperr.networks.in_format import device_and_dtype
from fperr.networks.model import Accessor, LogitsOf, OutputError, usable_model
from fperr.recording.hooks import check_output
from fperr.recording.loss_function import UserLoss

_PROBED_SAMPLES = 8


def checked_model(
    model: nn.Module, logits: Accessor | str | int | None
) -> tuple[nn.Module, LogitsOf | None]:
    """The model as exact arithmetic takes it, and the module that picks the logits from its output.

    Raises:
        TypeError, ValueError: the model cannot be measured, or comes from `torch.compile`.
    """
    usable = usable_model(model, None, logits)
    inner = usable.model if isinstance(usable, LogitsOf) else usable
    if inner is not model:
        raise TypeError("the model comes from torch.compile: record the module inside it")
    return usable, None if logits is None else LogitsOf(nn.Identity(), logits)


def checked_labels(
    model: nn.Module, y: Tensor, x: Tensor | None, targets: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Labels and targets, on the model's device.

    Raises:
        TypeError, ValueError: one of them, or x, is not usable.
    """
    where, _ = device_and_dtype(model)
    for name, value in (("y", y), ("targets", targets), ("x", x)):
        if not isinstance(value, Tensor) and (value is not None or name == "y"):
            raise TypeError(
                f"{name} must be a tensor, got {checks.shown(value)}: give torch.tensor(...)"
            )
    for name, labels in (("y", y), ("targets", targets)):
        if labels is not None and (labels.ndim != 1 or labels.dtype != torch.int64):
            raise ValueError(
                f"{name} must be (n,) int64, one class for each sample, got "
                f"{tuple(labels.shape)} {labels.dtype}: use .long() on whole numbers, one each"
            )
        if labels is not None:
            checks.class_labels(name, labels, len(labels), where)
    if targets is not None and (targets.shape != y.shape or bool((targets == y).any())):
        raise ValueError(
            f"targets must be as many as y, {len(y)}, and differ from y: a targeted attack needs "
            "another class, leave out the samples that have none"
        )
    if x is not None:
        _check_inputs(x, len(y))
    return y.to(where), None if targets is None else targets.to(where)


def _check_inputs(x: Tensor, samples: int) -> None:
    if not x.ndim or len(x) != samples:
        length = len(x) if x.ndim else "no"
        raise ValueError(f"x and y must be of one length, got {length} and {samples}: give as many")
    checks.inputs("x", x)
    if not bool(x.isfinite().all()):
        raise ValueError(
            "x has NaN or infinite entries, by which no sample can be told: leave those samples "
            "out of x and y, e.g. keep = x.flatten(1).isfinite().all(1)"
        )


def checked_numbers(
    every: int, samples: int | Sequence[int], digits: int | None, count: int
) -> list[int]:
    """Check `every`, `samples` and `digits` of `record`.

    Args:
        every: Interval of the compared forward passes.
        samples: Number of samples to compare, or their indices.
        digits: Correct decimal digits of the exact gradients; None: those that formats need.
        count: Number of samples in the batch.

    Returns:
        The indices of the samples to compare, each once.

    Raises:
        TypeError, ValueError: one of the numbers is none, or out of its range.
    """
    checks.whole_number("every", every, 1)
    if digits is not None:
        checks.whole_number("digits", digits, 10, 24)
    try:
        if isinstance(samples, bool):
            raise TypeError
        numbers = range(min(samples, count)) if isinstance(samples, int) else samples
        if any(isinstance(i, bool) for i in numbers):
            raise TypeError
        compared = list(dict.fromkeys(operator.index(i) for i in numbers))
    except TypeError:
        raise TypeError(f"samples must be a number or a list of them, got {samples!r}") from None
    if any(not 0 <= i < count for i in compared) or (isinstance(samples, int) and samples < 0):
        raise ValueError(f"samples must be between 0 and {count - 1}, or a number, got {samples}")
    return compared


def checked_names(name: str, values: object) -> list[str]:
    """A list of distinct names, possibly empty.

    Raises:
        TypeError, ValueError: they are no names, or one occurs twice.
    """
    return checks.distinct_names(name, values) if checks.names(name, values) else []


def checked_loss(loss: str | LossFunction | None) -> str | UserLoss | None:
    """The loss of the attack: None, a name, or a `UserLoss`.

    Raises:
        ValueError: no loss of that name, or `"gama"`.
        TypeError: neither a name nor a function.
    """
    if loss is None:
        return None
    if isinstance(loss, str):
        check_name(loss)
        return loss
    if not callable(loss):
        raise TypeError(
            f"loss must be a name or a function loss(logits, y, targets) -> (batch,), got "
            f"{checks.shown(loss)}: give one of the two"
        )
    return UserLoss(loss)


def check_name(loss: str) -> None:
    """Check that a loss of that name exists, and that its gradient depends on the logits alone.

    Raises:
        ValueError: there is none, or it is for attacks only, as `"gama"` is.
    """
    if loss_named(loss).is_for_attacks_only:
        raise ValueError(f"loss {loss!r} compares points of an attack: leave it out")


def runs_on(model: nn.Module, x: Tensor) -> Tensor | None:
    """The first few inputs in the model's dtype, if the model takes them; None if it does not.

    An attack may give the model its inputs in another form than `x`.

    Raises:
        ValueError: the model takes them, and returns something else than logits.
    """
    device, dtype = device_and_dtype(model)
    probe = x[:_PROBED_SAMPLES].detach().to(device, dtype, copy=True)
    try:
        with torch.no_grad():
            output = model(probe.clone())
    except OutputError:
        raise
    except Exception:  # whatever it is, the attack's own call says whether it matters
        return None
    check_output(output, len(probe))
    return probe


class Returned(nn.Module):
    """A model that returns the logits of another model, for the checks of its output."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The first rows of the logits, as many as x has."""
        return self.logits[: len(x)]


def check_logits(logits: Tensor, *, accept_probabilities: bool) -> None:
    """Check the logits that a model returned, without calling the model again.

    Raises:
        ValueError: they are probabilities or their logarithms, and not accepted.
    """
    number_of_classes(Returned(logits), logits, accept_probabilities=accept_probabilities)
