"""Cross-entropy whose gradient loses nothing to cancellation."""

import torch
from torch import Tensor, nn

from fperr.losses.arguments import (
    Reduction,
    check_classes,
    check_logits,
    check_reduction,
    check_values,
    output_dtype,
)
from fperr.losses.minus_log_p import minus_log_p


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy, -log p_y, with the accurate gradient at every margin.

    Value and arguments are those of `torch.nn.functional.cross_entropy`. PyTorch's gradient at the
    label is p_y - 1, which is exactly 0 from p_y = 1 - 2^-25 on (a margin of 17 in float32). Here,
    with q the softmax over the other classes and P = 1 - p_y, it is::

        v_i = P q_i for i != y,    v_y = -P,    P = sigmoid(log S - (z_y - m)),

    where m is the largest other logit and S = sum_{i != y} e^{z_i - m}. So the direction of v is
    off by O(K u), and its length by O((K + |z_y - m|) u), u the unit roundoff, at every margin: see
    `fperr.bounds.accurate_cross_entropy`. Values below u are right, too, and not 0. Half formats
    are computed in float32 and rounded once. Derivatives of every order are right.

    Args:
        input: Logits (batch, K), (batch, K, d1, ...) or (K,); -inf at masked classes.
        target: Class indices (batch,), (batch, d1, ...) or ().
        weight: Weights of the classes, (K,).
        size_average: Argument of old versions of PyTorch: refused.
        ignore_index: Class index of samples that are left out.
        reduce: Argument of old versions of PyTorch: refused.
        reduction: `"none"`, `"sum"`, or `"mean"` over the weights of the samples.
        label_smoothing: Share of the uniform distribution in the target, 0 to 1.

    Returns:
        The loss: (batch,) or (batch, d1, ...) without reduction; in float32 under autocast.

    Raises:
        TypeError, ValueError: Arguments that do not fit; targets that are probabilities; logits
            that are NaN or inf.

    Source: the closed form of the gradient; scenarios: all four (as a target's loss, its negative).

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> z = torch.tensor([[30.0, 0.0, 1.0]], requires_grad=True)
        >>> y = torch.tensor([0])
        >>> torch.autograd.grad(torch.nn.functional.cross_entropy(z, y), z)[0][0, 0]
        tensor(0.)
        >>> torch.autograd.grad(losses.cross_entropy(z, y), z)[0][0, 0]
        tensor(-3.4794e-13)
    """
    if size_average is not None or reduce is not None:
        raise TypeError(
            f"size_average and reduce must be left out, got {size_average} and {reduce}: use "
            "reduction='none', 'sum' or 'mean'"
        )
    check_reduction(reduction)
    if isinstance(input, Tensor) and isinstance(target, Tensor) and input.ndim == 1:
        return cross_entropy(
            input[None], target[None], weight, None, ignore_index, None, reduction, label_smoothing
        ).reshape(())
    check_logits(input, dimensions=None)
    has_ignored = check_classes("target", target, input, ignore_index)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"label_smoothing must be from 0 to 1, got {label_smoothing}: give the share of the "
            "uniform distribution"
        )
    classes = input.shape[1]
    if weight is not None and weight.shape != (classes,):
        raise ValueError(
            f"weight must be ({classes},), got {tuple(weight.shape)}: give one number a class"
        )
    is_used = target.long() != ignore_index if has_ignored else None
    return accurate_cross_entropy(
        input, target, is_used, weight, reduction, label_smoothing, are_checked=True
    )


def accurate_cross_entropy(
    input: Tensor,
    target: Tensor,
    is_used: Tensor | None,
    weight: Tensor | None,
    reduction: Reduction,
    label_smoothing: float,
    *,
    are_checked: bool = False,
) -> Tensor:
    """`cross_entropy` of arguments that fit, and of whatever numbers they hold.

    Args:
        input: Logits (batch, K, ...).
        target: Class indices (batch, ...).
        is_used: Which of them are not ignored, (batch, ...); None: all.
        weight: Weights of the classes, (K,).
        reduction: `"none"`, `"sum"` or `"mean"`.
        label_smoothing: Share of the uniform distribution in the target, 0 to 1.
        are_checked: Whether logits that are NaN or inf are refused.

    Raises:
        ValueError: Logits that are NaN or inf, if they are refused.
    """
    classes = input.shape[1]
    # rows are samples, and positions of further dimensions
    logits, label = input, target.long()
    if input.ndim > 2:
        logits, label = input.movedim(1, -1).reshape(-1, classes), label.reshape(-1)
        is_used = None if is_used is None else is_used.reshape(-1)
    if is_used is not None:
        label = label.where(is_used, 0)
        logits = logits.where(is_used[:, None], 0.0)  # which may be NaN, and have no gradient
    values = minus_log_p(logits, label)
    if are_checked:
        check_values(values, logits)
    of_label = None if weight is None else weight.to(values.dtype)[label]
    if of_label is not None:
        values = values * of_label
    if label_smoothing:
        log_p = logits.to(values.dtype).log_softmax(1)
        weighted = log_p if weight is None else log_p * weight.to(values.dtype)
        uniform = -weighted.sum(1) / classes
        values = (1 - label_smoothing) * values + label_smoothing * uniform
    return _reduced(values, of_label, is_used, target.shape, reduction).to(output_dtype(input))


def _reduced(
    values: Tensor,
    of_label: Tensor | None,
    is_used: Tensor | None,
    shape: torch.Size,
    reduction: Reduction,
) -> Tensor:
    """The reduction of the values of the rows, without those that are ignored."""
    if is_used is not None:
        values = values.where(is_used, 0.0)
    if reduction == "none":
        return values.reshape(shape)
    if reduction == "sum":
        return values.sum()
    if of_label is not None:
        weights = of_label if is_used is None else of_label.where(is_used, 0.0)
        return values.sum() / weights.sum()
    return values.mean() if is_used is None else values.sum() / is_used.sum()


class CrossEntropyLoss(nn.Module):
    """`cross_entropy` as a module, with the arguments of `torch.nn.CrossEntropyLoss`.

    Args:
        weight: Weights of the classes, (K,).
        ignore_index: Class index of samples that are left out.
        reduction: `"none"`, `"sum"`, or `"mean"` over the weights of the samples.
        label_smoothing: Share of the uniform distribution in the target, 0 to 1.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> losses.CrossEntropyLoss()(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1269)
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.register_buffer("weight", weight)
        self.ignore_index, self.reduction = ignore_index, reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (batch, K): see `cross_entropy`.

        Args:
            input: Logits (batch, K), (batch, K, d1, ...) or (K,).
            target: Class indices (batch,), (batch, d1, ...) or ().
        """
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
