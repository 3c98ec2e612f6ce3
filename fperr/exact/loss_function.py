"""The exact gradient, with respect to the logits, of a loss that is a Python function.

The loss is captured like a network whose input is the logits, and run in balls.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from flint import arb
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode
from torch.return_types import sort

from fperr.errors import ModelError, UnsupportedOperationError
from fperr.exact.adaptive_precision import AdaptivePrecision, Enclosure
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.ball.array import BallArray
from fperr.exact.graph import Capture, capture
from fperr.exact.interpreter import Interpreter

_ATEN = torch.ops.aten
# operations of losses -> the same in operations with an exact meaning; all but two by PyTorch
_WRITTEN_OUT: dict[OpOverload, Callable[..., object]] = {
    **cast(  # all of these operators are overloads
        dict[OpOverload, Callable[..., object]],
        get_decompositions(
            [
                _ATEN.binary_cross_entropy_with_logits,
                _ATEN.huber_loss,
                _ATEN.log_sigmoid_forward,
                _ATEN.logsumexp,
                _ATEN.mse_loss,
                _ATEN.multi_margin_loss,
                _ATEN.nll_loss_forward,
                _ATEN.smooth_l1_loss,
                _ATEN.soft_margin_loss,
            ]
        ),
    ),
    _ATEN.log1p.default: lambda a: (1 + a).log(),
    _ATEN.expm1.default: lambda a: a.exp() - 1,
}
_MOST_RANKED = 16  # numbers that are sorted by one maximum after the other
# relative difference of a rewritten loss in float64: sums of K terms in another order lose less
_LEFT_BY_REWRITING = 2.0**-40
_REMEDY = (
    "write the loss with softmax, log_softmax, cross_entropy, gather, scatter, amax and "
    "arithmetic, or leave it out, and errors are those of the network alone"
)


class LossGradient:
    """The gradient dL/dz of one sample's loss, at any logits.

    Args:
        function: Function from logits (1, K) to the loss (1,).
        classes: Number of classes, K.
        device: Device on which the function runs.

    Raises:
        UnsupportedOperationError: it uses operations that have no exact meaning; lists them.
        ModelError: it cannot be traced: its control flow depends on the logits.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], classes: int, device: torch.device
    ) -> None:
        self._function, self._classes, self._device = function, classes, device
        self._captured = _captured(function, classes, device)
        self._interpreters: dict[int, Interpreter[BallArray]] = {}

    def at(self, bits: int, z: Sequence[arb]) -> BallArray | None:
        """Enclose the gradient (1, K) at logits that are balls.

        Args:
            bits: Working precision, in bits.
            z: Logits, K balls.

        Returns:
            The gradient; None where it is infinite, undefined or not bounded by the balls.

        Raises:
            UndecidedError: a maximum or a comparison lies inside the enclosures.
        """
        if bits not in self._interpreters:
            capture, arithmetic = self._captured.capture, BallArithmetic(bits)
            self._interpreters[bits] = Interpreter(capture, arithmetic)
        interpreter = self._interpreters[bits]
        A = interpreter.arithmetic
        assert isinstance(A, BallArithmetic)
        run = interpreter.forward_from(A.array(z, (1, self._classes)))
        v: BallArray = interpreter.products(run.saved_values, A.from_torch(_one()))
        return v if A.is_finite(v) else None

    def enclosed(self, logits: Tensor, bits: float) -> Enclosure:
        """Enclose the gradient at floating-point logits (1, K) to a number of bits.

        Raises:
            ReferenceNotCertifiedError, SingularGradientError, ContradictedError: see
                `fperr.exact.gradient`.
        """
        certifier = AdaptivePrecision(self._captured.capture, math.ceil(bits))
        return certifier.product(logits.detach().to(self._device, torch.float64), _one())

    def is_function_at(self, logits: Tensor) -> bool:
        """Whether the captured loss has the function's value at logits (1, K).

        A function that also depends on random numbers or on a counter differs.
        """
        z = logits.detach().to(self._device, torch.float64)
        with torch.no_grad():
            captured_loss, function_loss = (
                self._captured.graph(z)[:, 0],
                self._function(z).to(torch.float64),
            )
        agrees = (captured_loss - function_loss).abs() <= _LEFT_BY_REWRITING * (
            1 + function_loss.abs()
        )
        return bool(
            (
                agrees
                | (captured_loss == function_loss)
                | (captured_loss.isnan() & function_loss.isnan())
            ).all()
        )


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: nn.Module
    capture: Capture = field(repr=False)


def _one() -> Tensor:
    return torch.ones(1, 1, dtype=torch.float64)


class _Rewritten(TorchFunctionMode):
    """Rewrites functions that cannot be traced or have no exact meaning.

    `one_hot` reads the values of its labels, which tracing forbids; labels are constants here, so
    it runs outside the trace. `sort` and `topk` become one maximum after the other.
    """

    def __torch_function__(
        self, func: Callable[..., object], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> object:
        """See `TorchFunctionMode`."""
        del types
        kwargs = kwargs or {}
        if func is one_hot:
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        if func in (torch.sort, Tensor.sort):
            ranked = _sorted(*args, **kwargs)
            return func(*args, **kwargs) if ranked is None else ranked
        if func in (torch.topk, Tensor.topk):
            ranked = _largest(*args, **kwargs)
            return func(*args, **kwargs) if ranked is None else ranked
        return func(*args, **kwargs)


def _sorted(
    numbers: Tensor, dim: int = -1, descending: bool = False, **options: bool
) -> sort | None:
    del options
    return _largest(numbers, numbers.shape[dim], dim, descending)


def _largest(
    numbers: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> sort | None:
    """The k largest or smallest numbers along `dim`, in order, with indices; None if too many."""
    del sorted
    if k > _MOST_RANKED:
        return None
    sign = 1 if largest else -1
    left, values, indices = sign * numbers, [], []
    for _ in range(k):
        index = left.argmax(dim, keepdim=True)
        indices.append(index)
        values.append(numbers.gather(dim, index))
        left = left.scatter(dim, index, -math.inf)
    return sort((torch.cat(values, dim), torch.cat(indices, dim)))


def _captured(
    function: Callable[[Tensor], Tensor], classes: int, device: torch.device
) -> _Captured:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, classes, generator=generator, dtype=torch.float64).to(device)

    def loss(logits: Tensor) -> Tensor:
        return function(logits)[:, None].to(torch.float64)

    try:
        with torch.no_grad(), _Rewritten():
            graph = make_fx(loss, decomposition_table=_WRITTEN_OUT)(z).eval()
    except Exception as fault:
        raise ModelError(
            f"the loss cannot be traced: {fault}. It must be a fixed sequence of PyTorch "
            f"operations, without control flow that depends on the logits: {_REMEDY}"
        ) from fault
    try:
        return _Captured(graph, capture(graph, z))
    except UnsupportedOperationError as fault:
        raise UnsupportedOperationError(_of_a_loss(str(fault))) from fault
    except ModelError as fault:
        raise ModelError(
            f"the loss cannot be captured: {fault}. {_REMEDY[0].upper()}{_REMEDY[1:]}"
        ) from fault


def _of_a_loss(message: str) -> str:
    """Rephrase a message about a network's operations for a loss."""
    operations = message.partition("here: ")[2].partition(". Supported")[0]
    return f"the loss uses operations that have no exact meaning here: {operations}. {_REMEDY}"
