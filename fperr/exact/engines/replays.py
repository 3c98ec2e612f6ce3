"""One sample's gradient with some values given: what a trace along the network asks of an engine.

Pairs of float64 come first, balls where pairs leave a branch undecided or prove too few bits.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from mpmath import MPContext
from torch import Tensor

from fperr.errors import UndecidedError
from fperr.exact.adaptive_precision import (
    AdaptivePrecision,
    log2_relative_radius,
    losses,
    midpoints,
)
from fperr.exact.arithmetic import NodeValue, T
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.ball.array import BallArray
from fperr.exact.double_word import DoubleWordArithmetic, DoubleWords
from fperr.exact.double_word.comparisons import order_undecided
from fperr.exact.double_word_network import log2_relative_errors
from fperr.exact.engines.cost import announce_balls
from fperr.exact.engines.gradient import (
    LossAtSample,
    logit_gradient_in_balls,
    logit_gradient_in_pairs,
    logits_of_pairs,
)
from fperr.exact.engines.vectors import DoubleWordVectors, MpVectors, ScaledDoubleWords
from fperr.exact.error_bound import decide_order
from fperr.exact.graph import Capture
from fperr.exact.interpreter import ForwardRun, Interpreter, SavedValues
from fperr.exact.mp import MpArithmetic, MpArray
from fperr.exact.precision import MOST_BITS

Result = TypeVar("Result")
_REMEDY = "Trace fewer samples, or a format with a larger unit roundoff, if that is too long"


class Replays(ABC, Generic[T]):
    """The network of one sample in one arithmetic; values of nodes may be given.

    Args:
        interpreter: The network. Its arithmetic raises `UndecidedError`.
        vectors: Vectors that gradients are returned in.
    """

    def __init__(self, interpreter: Interpreter[T], vectors: MpVectors) -> None:
        self.interpreter, self.vectors = interpreter, vectors

    @abstractmethod
    def loss_gradient(self, run: ForwardRun[T], loss: LossAtSample) -> tuple[MpArray, float]:
        """The gradient (1, entries) of a loss, exact after the logits of a run, and its bits.

        Raises:
            UndecidedError: The order of two logits is.
            ValueError: The loss has no gradient at these logits.
        """

    @abstractmethod
    def product(
        self,
        saved_values: SavedValues[T],
        v: Tensor,
        overrides: Mapping[str, NodeValue[T]] | None = None,
    ) -> tuple[MpArray, float]:
        """J^T v (1, entries) for a floating-point v (1, K), and its proved bits.

        Args:
            saved_values: Values that the backward half uses.
            v: Logit gradient, taken exactly.
            overrides: Values of nodes of the backward half, by node name.
        """

    @abstractmethod
    def is_same(self, a: T, b: T) -> bool:
        """Whether two arrays hold the same numbers, as far as the arithmetic tells."""


class _BallReplays(Replays[BallArray]):
    """In balls."""

    def loss_gradient(
        self, run: ForwardRun[BallArray], loss: LossAtSample
    ) -> tuple[MpArray, float]:
        A = self.interpreter.arithmetic
        assert isinstance(A, BallArithmetic)
        decide_order(run.logits)
        _check_defined(loss, self.vectors.context, midpoints(run.logits, self.vectors.context)[0])
        v = logit_gradient_in_balls(A, loss, run.logits)
        return self._with_bits(self.interpreter.pullback(run.saved_values, v))

    def product(
        self,
        saved_values: SavedValues[BallArray],
        v: Tensor,
        overrides: Mapping[str, NodeValue[BallArray]] | None = None,
    ) -> tuple[MpArray, float]:
        entering = self.interpreter.arithmetic.from_torch(v)
        return self._with_bits(
            self.interpreter.pullback(saved_values, entering, overrides=overrides)
        )

    def is_same(self, a: BallArray, b: BallArray) -> bool:
        return self.interpreter.arithmetic.equal(a, b)

    def _with_bits(self, balls: BallArray) -> tuple[MpArray, float]:
        return self.vectors.from_balls(balls).reshape(1, -1), -log2_relative_radius(balls)


class _PairReplays(Replays[DoubleWords]):
    """In pairs of float64."""

    def __init__(self, interpreter: Interpreter[DoubleWords], vectors: MpVectors) -> None:
        super().__init__(interpreter, vectors)
        self._pairs = DoubleWordVectors(torch.device("cpu"))

    def loss_gradient(
        self, run: ForwardRun[DoubleWords], loss: LossAtSample
    ) -> tuple[MpArray, float]:
        if bool(order_undecided(run.logits).any()):
            raise UndecidedError("two logits are closer than pairs of float64 can tell")
        numbers = logits_of_pairs(run.logits, self._pairs.context)
        _check_defined(loss, self._pairs.context, numbers)
        radius = float(run.logits.radius.max())
        log2_radius = math.log2(radius) if radius else -math.inf
        v = logit_gradient_in_pairs(self._pairs, loss, numbers, log2_radius)
        return self._times(run.saved_values, v, None)

    def product(
        self,
        saved_values: SavedValues[DoubleWords],
        v: Tensor,
        overrides: Mapping[str, NodeValue[DoubleWords]] | None = None,
    ) -> tuple[MpArray, float]:
        entering = ScaledDoubleWords(self.interpreter.arithmetic.from_torch(v), 0)
        return self._times(saved_values, entering, overrides)

    def is_same(self, a: DoubleWords, b: DoubleWords) -> bool:
        # a product of matrices has a radius also where it is exact
        unbounded = (replace(words, radius=torch.zeros_like(words.radius)) for words in (a, b))
        return self.interpreter.arithmetic.equal(*unbounded)

    def _times(
        self,
        saved_values: SavedValues[DoubleWords],
        v: ScaledDoubleWords,
        overrides: Mapping[str, NodeValue[DoubleWords]] | None,
    ) -> tuple[MpArray, float]:
        words = self.interpreter.pullback(saved_values, v.words, overrides=overrides)
        numbers = self._pairs.numbers(ScaledDoubleWords(words, v.exponent))
        bits = -max(float(log2_relative_errors(array)) for array in (v.words, words))
        return self.vectors.array(list(numbers.reshape(-1))), bits


class ReplayLadder:
    """Replays of one sample through a network, in the cheapest arithmetic that proves enough.

    Args:
        capture: Network, captured for a single sample.
        x: Input (1, *shape) of the network.
        bits: Correct bits required of every gradient, in norm.
        vectors: Vectors that gradients are returned in.
        gradients: Number of gradients that a use takes, to say how long balls need.
    """

    def __init__(
        self, capture: Capture, x: Tensor, bits: int, vectors: MpVectors, gradients: int
    ) -> None:
        self._capture, self._x, self._bits = capture, x, bits
        self._vectors, self._gradients = vectors, gradients

    def settled(self, use: Callable[[Replays[Any]], tuple[Result, float]]) -> Result:
        """What `use` makes of the replays, in the first arithmetic that proves enough bits of it.

        Args:
            use: Function that returns a result and the fewest bits of any gradient in it.

        Raises:
            ReferenceNotCertifiedError: Not even balls at the largest precision prove enough.
        """
        if self._bits <= MOST_BITS["double_word"]:
            pairs = _PairReplays(Interpreter(self._capture, DoubleWordArithmetic()), self._vectors)
            try:
                result, bits = use(pairs)
            except UndecidedError:
                bits = 0.0
            if bits >= self._bits:
                return result
            announce_balls(self._capture, 1, self._gradients, _REMEDY)

        def attempt(interpreter: Interpreter[BallArray]) -> tuple[Result, float]:
            return use(_BallReplays(interpreter, self._vectors))

        (result, _), _ = AdaptivePrecision(self._capture, self._bits).raised(
            attempt, lambda pair: pair[1], lambda i: losses(i, self._x, None)
        )
        return result


def replay_vectors(bits: int) -> MpVectors:
    """Vectors that hold gradients of so many bits, and differences of them."""
    return MpVectors(MpArithmetic(2 * bits))


def _check_defined(loss: LossAtSample, context: MPContext, z: Sequence[Any]) -> None:
    if not loss.is_defined_at(context, z):
        raise ValueError(f"loss {loss.kind!r} is undefined at this sample: leave it out")
