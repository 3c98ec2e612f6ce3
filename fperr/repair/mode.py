"""`with fperr.repaired(...)`: cross-entropy in somebody else's attack gets another gradient."""

import warnings
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from torch import Tensor, overrides
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fperr.errors import RepairWarning
from fperr.repair.call import REPAIRS, VALUES, CrossEntropyCall, Repair, Value
from fperr.repair.guard import GradientGuard
from fperr.repair.leaves import has_derivative, leaves
from fperr.repair.with_value import with_value

# calls that are seen, and cannot be repaired: their logits are gone, or other losses are meant
_NOT_REPAIRED: dict[Callable[..., Any], str] = {
    functional.nll_loss: "nll_loss (of a log_softmax: its logits cannot be reached)",
    functional.multi_margin_loss: "multi_margin_loss (no cross-entropy)",
    functional.kl_div: "kl_div (no cross-entropy)",
}
_TRAINING = (
    "repaired({0!r}) is for attacks, got {1}: {2}; for training, use fperr.losses.cross_entropy or "
    "repaired('cross_entropy')"
)


class repaired(TorchFunctionMode):  # noqa: N801 (used like a function)
    """Within this block, `torch.nn.functional.cross_entropy` has the gradient of another loss.

    So has `torch.nn.CrossEntropyLoss`: attacks of torchattacks, foolbox, ART and AutoAttack, which
    ascend it, become attacks on another loss with the same maximiser, unchanged. Values stay those
    of cross-entropy: in float32 they are 0 from a margin of about 17 on, so that an attack that
    *reads* them (APGD's best point and step sizes, early stops) sees nothing. For such, take
    `value="stable_ce"`: log sum_{i != y} e^{z_i} - z_y, a strictly increasing function of
    cross-entropy which never saturates, and may be negative.

    Not repaired are calls that the block does not see: in other threads, under `torch.jit.script`,
    of other losses. Those that it sees and cannot repair are named at its end.

    A training step in the block raises: the gradient of a call whose graph has no leaf but
    parameters, and an optimiser's step on gradients of a repaired loss, also after the block; so
    does a second derivative. (Not seen: weights that are no `nn.Parameter`, parameters inside a
    reentrant checkpoint, and steps by hand.) `repaired("cross_entropy")` computes cross-entropy
    itself, more accurately, and allows all that.

    Args:
        repair: Loss whose gradient is taken: `"stable_ce"`, `"mifpe"`, `"tmifpe"`, or
            `"cross_entropy"`, which mends cancellation alone: no gradient of cross-entropy can help
            where the true one is e^-1000.
        value: Value that is returned, `"cross_entropy"` or `"stable_ce"`.

    Attributes:
        repaired_calls: Number of calls with another gradient.
        calls_for_values: Number of calls of which no derivative can be taken.
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

    is_of_fperr = True  # a recorder may stand around it, or within it

    def __init__(self, repair: Repair = "stable_ce", *, value: Value = "cross_entropy") -> None:
        super().__init__()
        for name, given, known in (("repair", repair, REPAIRS), ("value", value, VALUES)):
            if given not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, known))}, got {given!r}: use "
                    f"{known[1]!r}"
                )
        self.repair, self.value = repair, value
        self.repaired_calls, self.calls_for_values = 0, 0
        self.other_calls = Counter[str]()
        self._guard: GradientGuard | None = None

    def __enter__(self) -> Self:
        if any(isinstance(mode, repaired) for mode in _active_modes()):
            raise RuntimeError(
                "repaired must not be used inside repaired, got a second one: leave the first "
                "block before"
            )
        if self.repair != "cross_entropy":
            what = "an optimiser's step on gradients of a repaired loss"
            remedy = "leave the block and call optimizer.zero_grad() before the next pass"
            self._guard = GradientGuard(_TRAINING.format(self.repair, what, remedy))
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
        elif not self.repaired_calls and not self._has_changed_values():
            seen = (
                "all calls of torch.nn.functional.cross_entropy without a gradient"
                if self.calls_for_values
                else "no call of torch.nn.functional.cross_entropy"
            )
            warnings.warn(
                f"repaired({self.repair!r}) saw {seen}: the attack takes its gradients from "
                "another loss, in another thread, or in torch.jit.script; fperr.Rescaled(model) "
                "rescales the logits for any loss",
                RepairWarning,
                stacklevel=2,
            )

    def _has_changed_values(self) -> bool:
        return self.value == "stable_ce" and self.calls_for_values > 0

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
        call = CrossEntropyCall.of(input, target, *args, **kwargs)
        why_not = call.why_not(only_plain=self.repair != "cross_entropy")
        if why_not is not None:
            self.other_calls[f"cross_entropy ({why_not})"] += 1
            return functional.cross_entropy(input, target, *args, **kwargs)
        value = call.as_it_is()  # which says what does not fit, as PyTorch does
        if self.value == "stable_ce":
            value = call.stable()
        if not has_derivative(input):
            self.calls_for_values += 1
            return value
        self.repaired_calls += 1
        if self._guard is None:
            return with_value(call.accurate(), value, _allow)
        return with_value(call.surrogate(self.repair), value, self._before_backward(input))

    def _before_backward(self, input: Tensor) -> Callable[[], None]:
        """What happens when the gradient of a loss of these logits is taken."""
        guard = self._guard
        assert guard is not None
        parameters, has_other = leaves(input)
        what = "the gradient of a loss that depends on parameters alone"
        remedy = "make a perturbation a tensor, as in torch.zeros_like(x).requires_grad_()"

        is_training = bool(parameters) and not has_other
        refusal = _TRAINING.format(self.repair, what, remedy) if is_training else None

        def before_backward() -> None:
            # some attacks read the value of such a loss, or differentiate it by something else than
            # the parameters; only a training step comes to these
            guard.expect(parameters, refusal)

        return before_backward


def _allow() -> None:
    """Any backward pass."""


def _active_modes() -> list[TorchFunctionMode]:
    return list(overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]
