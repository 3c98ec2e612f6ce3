"""`with fperr.repaired(...)`: cross-entropy in somebody else's attack gets another gradient."""

import warnings
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, overrides
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fperr.errors import RepairWarning
from fperr.losses import Context, cross_entropy, loss_named
from fperr.losses.arguments import reduced
from fperr.losses.attack_loss import first_order_only
from fperr.repair.guard import GradientGuard, is_tracked, leaves

Repair = Literal["cross_entropy", "stable_ce", "mifpe", "tmifpe"]
Value = Literal["cross_entropy", "stable_ce"]
REPAIRS: tuple[Repair, ...] = ("cross_entropy", "stable_ce", "mifpe", "tmifpe")
VALUES: tuple[Value, ...] = ("cross_entropy", "stable_ce")
# calls that are seen, and cannot be repaired: their logits are gone, or other losses are meant
_NOT_REPAIRED: dict[Callable[..., Any], str] = {
    functional.nll_loss: "nll_loss (of a log_softmax: its logits cannot be reached)",
    functional.multi_margin_loss: "multi_margin_loss (no cross-entropy)",
    functional.kl_div: "kl_div (no cross-entropy)",
}
_TRAINING = (
    "repaired({0!r}) is for attacks, got {1}: use fperr.losses.cross_entropy, or "
    "repaired('cross_entropy'), for training, and leave the `with` block before an optimiser's step"
)


class repaired(TorchFunctionMode):  # noqa: N801 (used like a function)
    """Within this block, `torch.nn.functional.cross_entropy` has a gradient that does not vanish.

    So has `torch.nn.CrossEntropyLoss`: attacks of torchattacks, foolbox, ART and AutoAttack, which
    ascend it, become attacks on another loss with the same maximiser, unchanged. Values stay those
    of cross-entropy: in float32 they are 0 from a margin of 17 on, so that an attack that *reads*
    them (APGD's best point and step sizes, early stops) sees nothing. For such, take
    `value="stable_ce"`: log sum_{i != y} e^{z_i} - z_y, a strictly increasing function of
    cross-entropy which never saturates, and may be negative.

    Not repaired are calls that the block does not see: in other threads, under `torch.jit.script`,
    of other losses. Those that it sees and cannot repair are named at its end.

    A training step in the block raises: the gradient of a call whose graph has no leaf but
    parameters, and an optimiser's step on gradients of a repaired loss, also after the block; so
    does a second derivative. `repaired("cross_entropy")` computes cross-entropy itself, more
    accurately, and allows all that.

    Args:
        repair: Loss whose gradient is taken: `"stable_ce"`, `"mifpe"`, `"tmifpe"`, or
            `"cross_entropy"`, which mends cancellation alone: no gradient of cross-entropy can help
            where the true one is e^-1000.
        value: Value that is returned, `"cross_entropy"` or `"stable_ce"`.

    Attributes:
        repaired_calls: Number of calls with another gradient.
        other_calls: Calls that were seen and left as they are, by their reason.

    Raises:
        ValueError: No such repair or value.
        RuntimeError: Another such block is active; a training step.

    Warns:
        RepairWarning: At the end, calls that were not repaired; or that none was.

    Source: Yu and Xu, CVPR 2023 (MIFPE); arXiv 2507.22428 (T-MIFPE).

    Example:
        >>> import fperr, torch
        >>> from fperr import zoo
        >>> model, x = zoo.load("fashion_saturated"), torch.rand(1, 1, 28, 28).requires_grad_()
        >>> with fperr.repaired("stable_ce"):
        ...     loss = torch.nn.functional.cross_entropy(10 * model(x), torch.tensor([6]))
        >>> bool(torch.autograd.grad(loss, x)[0].any())
        True
    """

    def __init__(self, repair: Repair = "stable_ce", *, value: Value = "cross_entropy") -> None:
        super().__init__()
        for name, given, known in (("repair", repair, REPAIRS), ("value", value, VALUES)):
            if given not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, known))}, got {given!r}: use "
                    f"{known[1]!r}"
                )
        self.repair, self.value = repair, value
        self.repaired_calls, self.other_calls = 0, Counter[str]()
        self._guard: GradientGuard | None = None

    def __enter__(self) -> Self:
        if any(isinstance(mode, repaired) for mode in _active_modes()):
            raise RuntimeError(
                "repaired must not be used inside repaired, got a second one: leave the first "
                "block before"
            )
        if self.repair != "cross_entropy":
            what = "an optimiser's step on gradients of a repaired loss"
            self._guard = GradientGuard(_TRAINING.format(self.repair, what))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if self._guard is not None:
            self._guard.end()
        if error is not None:
            return
        if self.other_calls:
            listed = "; ".join(f"{count} of {name}" for name, count in self.other_calls.items())
            warnings.warn(
                f"repaired({self.repair!r}) left calls as they are: {listed}. Their gradients are "
                "those of the attack; fperr.Rescaled(model) rescales the logits for any loss",
                RepairWarning,
                stacklevel=2,
            )
        elif not self.repaired_calls:
            warnings.warn(
                f"repaired({self.repair!r}) saw no call of torch.nn.functional.cross_entropy: the "
                "attack uses another loss, another thread, or torch.jit.script; "
                "fperr.Rescaled(model) rescales the logits for any loss",
                RepairWarning,
                stacklevel=2,
            )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or repair it."""
        del types
        kwargs = kwargs or {}
        if func is functional.cross_entropy:
            return self._cross_entropy(*args, **kwargs)
        if func in _NOT_REPAIRED:
            self.other_calls[_NOT_REPAIRED[func]] += 1
        return func(*args, **kwargs)

    def _cross_entropy(self, input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Cross-entropy with another gradient, and perhaps another value."""
        call = _Call.of(input, target, *args, **kwargs)
        why_not = call.why_not(only_plain=self.repair != "cross_entropy")
        if why_not is not None:
            self.other_calls[f"cross_entropy ({why_not})"] += 1
            return functional.cross_entropy(input, target, *args, **kwargs)
        value = call.stable() if self.value == "stable_ce" else call.as_it_is()
        if not is_tracked(input):
            return value
        loss, refusal = self._loss(call)
        self.repaired_calls += 1
        with_value: Tensor = _WithValue.apply(loss, value, refusal)  # type: ignore[no-untyped-call]
        return with_value

    def _loss(self, call: "_Call") -> tuple[Tensor, str | None]:
        """The loss that is differentiated, and why it must not be, if so."""
        if self.repair == "cross_entropy":
            return call.accurate(), None
        assert self._guard is not None
        parameters, has_other = leaves(call.input)
        if parameters and not has_other:
            # some attacks read the value of such a loss; only a training step differentiates it
            what = "the gradient of a loss that depends on parameters alone"
            return call.surrogate(self.repair), _TRAINING.format(self.repair, what)
        self._guard.watch(parameters)
        return call.surrogate(self.repair), None


def _active_modes() -> list[TorchFunctionMode]:
    return list(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]


class _Call:
    """The arguments of a call of `torch.nn.functional.cross_entropy`."""

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
    ) -> "_Call":
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
        if only_plain and bool((self.target == options["ignore_index"]).any()):
            return "ignored targets"
        return None

    def as_it_is(self) -> Tensor:
        """PyTorch's value."""
        return functional.cross_entropy(self.input.detach(), self.target, **self.options)

    def accurate(self) -> Tensor:
        """Cross-entropy with the accurate gradient, and the same arguments."""
        return cross_entropy(self.input, self.target, **self.options)

    def stable(self) -> Tensor:
        """The value of stable cross-entropy."""
        with torch.no_grad():
            return self._of_rows("stable_ce", self.input.detach())

    def surrogate(self, name: str) -> Tensor:
        """The loss of that name, whose derivative refuses to be differentiated."""
        return self._of_rows(name, first_order_only(self.input, f"repaired({name!r})"))

    def _of_rows(self, name: str, input: Tensor) -> Tensor:
        """The loss of that name, reduced; rows are samples, and positions of more dimensions."""
        rows = input.movedim(1, -1).reshape(-1, input.shape[1])
        values = loss_named(name)(rows, self.target.reshape(-1).long(), Context())
        if self.options["reduction"] == "none":
            return values.reshape(self.target.shape)
        return reduced(values, self.options["reduction"])


class _WithValue(torch.autograd.Function):
    """A loss that returns another value, and may refuse to be differentiated."""

    @staticmethod
    def forward(context: Any, loss: Tensor, value: Tensor, refusal: str | None) -> Tensor:
        del loss
        context.refusal = refusal
        return value.clone()

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        if context.refusal is not None:
            raise RuntimeError(context.refusal)
        return upstream, None, None
