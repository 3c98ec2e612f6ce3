"""Replays of one sample between the exact network and a format, one operation further each time.

In each replay, the operations up to a certain one have the values that the format computed, and all
later ones are exact. Each step to the next operation adds one vector to the error of the gradient.
Operations on weights alone are one step together, after the cast and before the forward half.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fperr.exact.adaptive_precision import (
    AdaptivePrecision,
    log2_relative_radius,
    losses,
    midpoints,
)
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.ball.array import BallArray
from fperr.exact.branches import branches_of, corresponding, flips
from fperr.exact.engines.scaled import scaled
from fperr.exact.engines.vectors import MpVectors
from fperr.exact.error_bound import decide_order, logit_gradient_balls
from fperr.exact.graph import Capture, Node
from fperr.exact.interpreter import ForwardRun, Interpreter
from fperr.exact.mp import MpArithmetic, MpArray
from fperr.exact.own_constants import with_own_constants
from fperr.exact.saved_values import FloatRun, float_run
from fperr.losses import Context
from fperr.measurement.arguments import MeasureRequest
from fperr.networks.in_format import FloatGradient, FormatNetwork

_BITS = 120  # correct bits of every gradient, so that differences of two of them are accurate
_CAST = "cast", "weights and input rounded"
_CONSTANTS = "constants", "operations on weights alone"


@dataclass(frozen=True, slots=True)
class LayerStep:
    """The gradient after one more operation is replayed as the format computed it.

    Attributes:
        layer: Name of the node, or `"cast"`, `"constants"`, `"loss"`.
        operation: Operation of the node, in words or by its name in ATen.
        half: `"cast"`, `"constants"`, `"forward"`, `"loss"` or `"backward"`.
        gradient: Gradient (1, entries): operations up to and including this one as the format
            computed them, later ones exact.
        flips: Number of branches taken in this operation that differ from the exact network's,
            those at ties included.
    """

    layer: str
    operation: str
    half: str
    gradient: MpArray
    flips: int


class LayerTracer:
    """The replays of one sample, from the exact gradient to the format's.

    Args:
        request: Checked request.
        unrounded: The model in its own dtype.
        network: The model in the format.
        sample: Index of the sample in x.
    """

    def __init__(
        self, request: MeasureRequest, unrounded: FormatNetwork, network: FormatNetwork, sample: int
    ) -> None:
        self.x = request.x[sample : sample + 1]
        self.loss, self.network = request.losses[0], network
        self.exact_capture, self.capture = unrounded.capture(self.x), network.capture(self.x)
        targeted = request.targets is not None
        labels = request.targets if request.targets is not None else request.y
        if labels is None:
            self.label = unrounded.logits(self.x).argmax(1)
        else:
            self.label = labels[sample : sample + 1]
        self.targeted = targeted
        self.y = None if request.y is None else int(request.y[sample])
        y = None if request.y is None else request.y[sample : sample + 1]
        self.computed: FloatGradient = network.gradient(
            self.x, self.label, self.loss, Context(targeted, y), mean=False
        )
        with network.running():
            self.own_capture = with_own_constants(self.capture)
            self.run: FloatRun = float_run(
                self.capture,
                network.cast(self.x),
                self.computed.logit_gradient,
                everything=True,
            )
        self.vectors = MpVectors(MpArithmetic(2 * _BITS))

    @property
    def is_finite(self) -> bool:
        """Whether the format's constants, logits and gradients are finite."""
        if self.own_capture is None:
            return False
        tensors = self.computed.logits, self.computed.logit_gradient, self.computed.gradient
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    def rows(self) -> Iterator[dict[str, object]]:
        """The row of each step: the vector that it adds, relative to gradient and total error."""
        A = self.vectors
        gradient, exact_run = self._exact_gradient()
        steps = self._steps(exact_run)
        computed = A.from_torch(self.computed.gradient.reshape(1, -1))
        g = scaled(A, gradient)
        total_error = scaled(A, A.sub(computed, gradient))
        before = gradient
        for step in steps:
            added_error = scaled(A, A.sub(step.gradient, before))
            so_far = scaled(A, A.sub(step.gradient, gradient))
            vanishes = not added_error.values.any() or not total_error.values.any()
            yield {
                "layer": step.layer,
                "operation": step.operation,
                "half": step.half,
                "contribution": added_error.ratio(g),
                "share": 0.0
                if vanishes
                else added_error.ratio(total_error) * added_error.cosine(total_error),
                "delta_so_far": so_far.ratio(g),
                "flips": step.flips,
            }
            before = step.gradient

    def _gradient(
        self, interpreter: Interpreter[BallArray], run: ForwardRun[BallArray], bits: list[float]
    ) -> MpArray:
        """The gradient of the loss, exact after the logits; adds its proved bits to `bits`."""
        A = interpreter.arithmetic
        assert isinstance(A, BallArithmetic)
        decide_order(run.logits)
        v = logit_gradient_balls(
            A,
            self.loss.kind,
            run.logits,
            int(self.label),
            c=self.vectors.context.mpf(float(self.computed.scale.c)),
            targeted=self.targeted,
            y=self.y,
        )
        if v is None:
            raise ValueError(f"loss {self.loss.name!r} is undefined at this sample: leave it out")
        return self._midpoints(interpreter.products(run.saved_values, v), bits)

    def _midpoints(self, balls: BallArray, bits: list[float]) -> MpArray:
        """The midpoints of a gradient in balls; adds its proved bits to `bits`."""
        bits.append(-log2_relative_radius(balls))
        return midpoints(balls, self.vectors.context)

    def _exact_gradient(
        self,
    ) -> tuple[MpArray, tuple[Interpreter[BallArray], ForwardRun[BallArray]]]:
        """The exact gradient, and the run of the exact network that it comes from."""

        def attempt(
            interpreter: Interpreter[BallArray],
        ) -> tuple[MpArray, Interpreter[BallArray], ForwardRun[BallArray], float]:
            run, bits = interpreter.forward(self.x), list[float]()
            gradient = self._gradient(interpreter, run, bits)
            return gradient, interpreter, run, min(bits)

        (gradient, interpreter, run, _), _ = AdaptivePrecision(self.exact_capture, _BITS).raised(
            attempt, lambda result: result[3], lambda i: losses(i, self.x, None)
        )
        return gradient, (interpreter, run)

    def _steps(
        self, exact: tuple[Interpreter[BallArray], ForwardRun[BallArray]]
    ) -> list[LayerStep]:
        """The steps from the exact gradient to the format's, each with `_BITS` proved bits."""
        assert self.own_capture is not None
        if self.own_capture is self.capture:
            return self._raised(self.capture, functools.partial(self._walk, exact, _CAST))
        cast = self._raised(self.capture, functools.partial(self._step_of_weights, _CAST))
        return cast + self._raised(
            self.own_capture, functools.partial(self._walk, exact, _CONSTANTS)
        )

    def _raised(
        self,
        capture: Capture,
        steps: Callable[[Interpreter[BallArray], list[float]], Iterable[LayerStep]],
    ) -> list[LayerStep]:
        """Steps through a network, at a precision that proves `_BITS` bits of each."""

        def attempt(interpreter: Interpreter[BallArray]) -> tuple[list[LayerStep], float]:
            bits: list[float] = []
            return list(steps(interpreter, bits)), min(bits)

        cast_x = self.network.cast(self.x)
        (layer_steps, _), _ = AdaptivePrecision(capture, _BITS).raised(
            attempt, lambda result: result[1], lambda i: losses(i, cast_x, None)
        )
        return layer_steps

    def _step_of_weights(
        self, words: tuple[str, str], interpreter: Interpreter[BallArray], bits: list[float]
    ) -> Iterator[LayerStep]:
        """The step to the network of the interpreter: its layer and half, and what it rounds."""
        run = interpreter.forward(self.network.cast(self.x))
        gradient = self._gradient(interpreter, run, bits)
        yield LayerStep(words[0], words[1], words[0], gradient, 0)

    def _walk(
        self,
        exact: tuple[Interpreter[BallArray], ForwardRun[BallArray]],
        words: tuple[str, str],
        interpreter: Interpreter[BallArray],
        bits: list[float],
    ) -> Iterator[LayerStep]:
        """The steps, at the precision of the interpreter; adds their proved bits to `bits`.

        Args:
            exact: The exact network and its run.
            words: Layer and half of the first step, and what it rounds.
            interpreter: Network with the format's weights and constants.
            bits: List that the proved bits are added to.
        """
        cast_x = self.network.cast(self.x)
        flips_at = self._flips(interpreter, exact)
        run = interpreter.forward(cast_x)
        gradient = self._gradient(interpreter, run, bits)
        yield LayerStep(words[0], words[1], words[0], gradient, 0)
        # values of the nodes that have been replayed as the format computed them, by node
        replayed: dict[str, Any] = {
            self.capture.placeholders[0].name: interpreter.arithmetic.from_torch(cast_x)
        }
        for node in self.capture.forward:
            rounds = self._advance(interpreter, node, replayed)
            if rounds:
                run = interpreter.forward(cast_x, replayed)
                gradient = self._gradient(interpreter, run, bits)
            if rounds or node.name in flips_at:
                yield LayerStep(
                    node.name, _operation(node), "forward", gradient, flips_at.get(node.name, 0)
                )
        v = interpreter.arithmetic.from_torch(self.computed.logit_gradient)
        gradient = self._midpoints(interpreter.products(run.saved_values, v), bits)
        yield LayerStep("loss", self.loss.name, "loss", gradient, 0)
        replayed = {**run.values, self.capture.placeholders[1].name: v}
        backward_values: dict[str, Any] = {}
        for node in self.capture.backward:
            if self._advance(interpreter, node, replayed):
                backward_values[node.name] = replayed[node.name]
                balls = interpreter.products(run.saved_values, v, overrides=backward_values)
                gradient = self._midpoints(balls, bits)
                yield LayerStep(node.name, _operation(node), "backward", gradient, 0)
            backward_values[node.name] = replayed[node.name]

    def _advance(
        self, interpreter: Interpreter[BallArray], node: Node, replayed: dict[str, Any]
    ) -> bool:
        """Add the format's value of a node to `replayed`; return whether the node rounded."""
        computed = interpreter.converted(self.run.values[node.name])
        exact = interpreter.applied(node, replayed)
        replayed[node.name] = computed
        return not _equal(computed, exact, interpreter)

    def _flips(
        self,
        interpreter: Interpreter[BallArray],
        exact: tuple[Interpreter[BallArray], ForwardRun[BallArray]],
    ) -> dict[str, int]:
        """The number of branches that differ from the exact network's, by layer."""
        branches = branches_of(self.exact_capture, exact[1], exact[0].arithmetic)
        keys = corresponding(branches, self.capture)
        if keys is None:
            return {}
        saved = interpreter.saved_values_of(self.run, 0)
        return {f.layer: f.flips + f.tie_flips for f in flips(branches, saved, keys)}


def _operation(node: Node) -> str:
    """The name of a node's operation, without namespace and overload."""
    return str(node.target).removeprefix("aten.").rsplit(".", 1)[0]


def _equal(a: Any, b: Any, interpreter: Interpreter[BallArray]) -> bool:
    """Whether a and b hold the same numbers; outputs that one of them lacks count as equal."""
    if isinstance(a, list | tuple):
        return all(
            x is None or y is None or _equal(x, y, interpreter) for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return interpreter.arithmetic.equal(a, b)
