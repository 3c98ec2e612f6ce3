"""A call of `torch.nn.functional.cross_entropy`, and what it may become."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from fperr.losses import Context, loss_named
from fperr.losses.arguments import is_true, output_dtype, reduced
from fperr.losses.attack_loss import first_order_only
from fperr.losses.cross_entropy import accurate_cross_entropy

Repair = Literal["cross_entropy", "stable_ce", "mifpe", "tmifpe"]
Value = Literal["cross_entropy", "stable_ce"]
REPAIRS: tuple[Repair, ...] = ("cross_entropy", "stable_ce", "mifpe", "tmifpe")
VALUES: tuple[Value, ...] = ("cross_entropy", "stable_ce")


class CrossEntropyCall:
    """The arguments of such a call."""

    def __init__(self, input: Tensor, target: Tensor, options: dict[str, Any]) -> None:
        self.input, self.target, self.options = input, target, options

    @classmethod
    def of(
        cls,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> "CrossEntropyCall":
        """The call with these arguments, which are PyTorch's."""
        options = {
            "weight": weight,
            "size_average": size_average,
            "ignore_index": ignore_index,
            "reduce": reduce,
            "reduction": reduction,
            "label_smoothing": label_smoothing,
        }
        return cls(input, target, options)

    def why_not(self, *, only_plain: bool) -> str | None:
        """Why the call is left as it is, in words; None: it is repaired."""
        options = self.options
        if self.target.is_floating_point():
            return "targets that are probabilities"
        if options["size_average"] is not None or options["reduce"] is not None:
            return "size_average or reduce, which PyTorch has retired"
        if self.input.ndim < 2 or self.input.shape[1] < 2:
            return "a single sample without a batch, or a single class"
        if only_plain and options["weight"] is not None:
            return "weights of the classes"
        if only_plain and options["label_smoothing"]:
            return "label smoothing"
        if only_plain and is_true((self.target.long() == options["ignore_index"]).any()):
            return "ignored targets"
        return None

    def as_it_is(self) -> Tensor:
        """PyTorch's value."""
        return functional.cross_entropy(self.input.detach(), self.target, **self.options)

    def accurate(self) -> Tensor:
        """Cross-entropy with the accurate gradient, and the same arguments."""
        options = self.options
        is_used = self.target.long() != options["ignore_index"]
        return accurate_cross_entropy(
            self.input,
            self.target,
            None if is_true(is_used.all()) else is_used,
            options["weight"],
            options["reduction"],
            options["label_smoothing"],
        )

    def stable(self) -> Tensor:
        """The value of stable cross-entropy."""
        with torch.no_grad():
            return self._of_rows("stable_ce", self.input.detach())

    def surrogate(self, name: str) -> Tensor:
        """The loss of that name, whose derivative refuses to be differentiated."""
        return self._of_rows(name, first_order_only(self.input, f"repaired({name!r})"))

    def _of_rows(self, name: str, input: Tensor) -> Tensor:
        """The loss of that name, reduced; rows are samples, and positions of more dimensions."""
        rows = input.to(output_dtype(input)).movedim(1, -1).reshape(-1, input.shape[1])
        values = loss_named(name)(rows, self.target.reshape(-1).long(), Context())
        if self.options["reduction"] == "none":
            return values.reshape(self.target.shape)
        return reduced(values, self.options["reduction"])
