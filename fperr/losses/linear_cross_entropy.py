"""Accurate cross-entropy of a linear layer's outputs, without all logits at once."""

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from fperr.losses.arguments import Reduction, check_classes, check_reduction, output_dtype
from fperr.losses.cross_entropy import cross_entropy

_LOGITS_AT_ONCE = 1 << 24  # 64 MB in float32, and about four times that with its gradient


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    y: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    rows_at_once: int | None = None,
) -> Tensor:
    """`cross_entropy(hidden @ weight.T + bias, y)`, some rows at a time.

    The logits of a piece are computed for its loss, and again for its gradient, so that memory does
    not grow with the number of rows. The gradient of each piece is that of `cross_entropy`.

    Args:
        hidden: Inputs of the layer (n, features).
        weight: Weight of the layer (K, features).
        y: Classes (n,).
        bias: Bias of the layer (K,), or None.
        ignore_index: Class index of rows that are left out.
        reduction: `"none"`, `"sum"`, or `"mean"` over the rows that are not left out.
        rows_at_once: Rows of a piece; None: about 2^24 logits.

    Returns:
        The loss: (n,) without reduction.

    Raises:
        TypeError, ValueError: Arguments that do not fit; logits that are NaN or inf.

    Source: as `cross_entropy`; pieces as in Liger and cut cross-entropy.

    Example:
        >>> import torch
        >>> from fperr import losses
        >>> hidden, weight = torch.rand(8, 16), torch.rand(1000, 16)
        >>> y = torch.arange(8)
        >>> pieces = losses.linear_cross_entropy(hidden, weight, y, rows_at_once=3)
        >>> bool((pieces - losses.cross_entropy(hidden @ weight.T, y)).abs() < 1e-5)
        True
    """
    check_reduction(reduction)
    for name, value, dimensions in (("hidden", hidden, 2), ("weight", weight, 2)):
        if not isinstance(value, Tensor) or value.ndim != dimensions:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{name} must be a matrix, got {got}: flatten its leading dimensions, as in "
                f"{name}.flatten(0, -2)"
            )
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"weight must be (K, {hidden.shape[1]}) for hidden {tuple(hidden.shape)}, got "
            f"{tuple(weight.shape)}: give the layer's weight as it is"
        )
    check_classes("y", y, hidden.new_empty((len(hidden), len(weight)), device="meta"), ignore_index)
    if rows_at_once is not None and rows_at_once < 1:
        raise ValueError(
            f"rows_at_once must be 1 or more, got {rows_at_once}: leave it out for 2^24 logits"
        )
    rows = max(1, _LOGITS_AT_ONCE // len(weight)) if rows_at_once is None else rows_at_once

    def of_piece(piece: Tensor, classes: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits = linear(piece, weight, bias)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()  # a sum of losses may leave the range of the format
        return cross_entropy(logits, classes, ignore_index=ignore_index, reduction="none")

    pieces = [
        checkpoint(of_piece, piece, classes, weight, bias, use_reentrant=False)
        for piece, classes in zip(torch.split(hidden, rows), torch.split(y, rows), strict=True)
    ]
    values = torch.cat(pieces)
    dtype = output_dtype(hidden)
    if reduction == "none":
        return values.to(dtype)
    total = values.sum()
    if reduction == "mean":
        total = total / (y.long() != ignore_index).sum()
    return total.to(dtype)
