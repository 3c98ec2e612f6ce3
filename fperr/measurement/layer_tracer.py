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
from torch import Tensor

from fperr.exact import index_arrays
from fperr.exact.branches import Branches, branches_of, corresponding, flips
from fperr.exact.engines.gradient import LossAtSample
from fperr.exact.engines.replays import ReplayLadder, Replays, replay_vectors
from fperr.exact.engines.samples_of_run import sample_of_run, sample_of_saved
from fperr.exact.engines.scaled import scaled
from fperr.exact.graph import Capture, Node
from fperr.exact.interpreter import Interpreter
from fperr.exact.mp import MpArray
from fperr.exact.own_constants import with_own_constants
from fperr.exact.precision import bits_for_delta
from fperr.exact.saved_values import FloatRun, float_run
from fperr.losses import Context
from fperr.measurement.arguments import MeasureRequest
from fperr.networks.in_format import FloatGradient, FormatNetwork

# What a step adds is known to four digits down to 2**-10 of the format's unit roundoff.
_MORE_BITS = 10
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
        self._bits = bits_for_delta(network.format.unit_roundoff) + _MORE_BITS
        self.vectors = replay_vectors(self._bits)
        self.loss_at_sample = LossAtSample(
            self.loss.kind,
            int(self.label),
            float(self.computed.scale.c),
            self.targeted,
            self.y,
            tau=self.loss.tau,
        )

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
        gradient, branches = self._exact_gradient()
        steps = self._steps(branches)
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

    def _exact_gradient(self) -> tuple[MpArray, tuple[Branches, ...]]:
        """The exact gradient, and the branches that the exact network takes."""

        def use(replays: Replays[Any]) -> tuple[tuple[MpArray, tuple[Branches, ...]], float]:
            interpreter = replays.interpreter
            run = interpreter.forward(self.x)
            gradient, bits = replays.loss_gradient(run, self.loss_at_sample)
            sample = sample_of_run(run, 0)
            branches = branches_of(self.exact_capture, sample, interpreter.arithmetic)
            return (gradient, branches), bits

        return self._ladder(self.exact_capture, self.x, 1).settled(use)

    def _ladder(self, capture: Capture, x: Tensor, gradients: int) -> ReplayLadder:
        return ReplayLadder(capture, x, self._bits, self.vectors, gradients)

    def _steps(self, branches: tuple[Branches, ...]) -> list[LayerStep]:
        """The steps from the exact gradient to the format's, each with the proved bits."""
        assert self.own_capture is not None
        if self.own_capture is self.capture:
            return self._settled(self.capture, functools.partial(self._walk, branches, _CAST))
        cast = self._settled(self.capture, functools.partial(self._step_of_weights, _CAST))
        return cast + self._settled(
            self.own_capture, functools.partial(self._walk, branches, _CONSTANTS)
        )

    def _settled(
        self, capture: Capture, steps: Callable[[Replays[Any], list[float]], Iterable[LayerStep]]
    ) -> list[LayerStep]:
        """Steps through a network, in an arithmetic that proves enough bits of each."""

        def use(replays: Replays[Any]) -> tuple[list[LayerStep], float]:
            bits: list[float] = []
            return list(steps(replays, bits)), min(bits)

        nodes = len(capture.forward) + len(capture.backward)
        return self._ladder(capture, self.network.cast(self.x), nodes).settled(use)

    def _step_of_weights(
        self, words: tuple[str, str], replays: Replays[Any], bits: list[float]
    ) -> Iterator[LayerStep]:
        """The step to the network of the replays: its layer and half, and what it rounds."""
        run = replays.interpreter.forward(self.network.cast(self.x))
        gradient, proved_bits = replays.loss_gradient(run, self.loss_at_sample)
        bits.append(proved_bits)
        yield LayerStep(words[0], words[1], words[0], gradient, 0)

    def _walk(
        self,
        branches: tuple[Branches, ...],
        words: tuple[str, str],
        replays: Replays[Any],
        bits: list[float],
    ) -> Iterator[LayerStep]:
        """The steps, in the arithmetic of the replays; adds their proved bits to `bits`.

        Args:
            branches: Branches that the exact network takes.
            words: Layer and half of the first step, and what it rounds.
            replays: Network with the format's weights and constants.
            bits: List that the proved bits are added to.
        """
        cast_x, interpreter = self.network.cast(self.x), replays.interpreter
        flips_at = self._flips(interpreter, branches)

        def with_bits(gradient: MpArray, proved_bits: float) -> MpArray:
            bits.append(proved_bits)
            return gradient

        run = interpreter.forward(cast_x)
        gradient = with_bits(*replays.loss_gradient(run, self.loss_at_sample))
        yield LayerStep(words[0], words[1], words[0], gradient, 0)
        # values of the nodes that have been replayed as the format computed them, by node
        replayed: dict[str, Any] = {
            self.capture.placeholders[0].name: interpreter.arithmetic.from_torch(cast_x)
        }
        for node in self.capture.forward:
            rounds = self._advance(replays, node, replayed)
            if rounds:
                run = interpreter.forward(cast_x, replayed)
                gradient = with_bits(*replays.loss_gradient(run, self.loss_at_sample))
            layer = self.capture.layer(node)
            if rounds or layer in flips_at:
                yield LayerStep(
                    layer, _operation(node), "forward", gradient, flips_at.get(layer, 0)
                )
        v = self.computed.logit_gradient
        gradient = with_bits(*replays.product(run.saved_values, v))
        yield LayerStep("loss", self.loss.name, "loss", gradient, 0)
        entering = interpreter.arithmetic.from_torch(v)
        replayed = {**run.values, self.capture.placeholders[1].name: entering}
        backward_values: dict[str, Any] = {}
        for node in self.capture.backward:
            if self._advance(replays, node, replayed):
                backward_values[node.name] = replayed[node.name]
                gradient = with_bits(*replays.product(run.saved_values, v, backward_values))
                yield LayerStep(self.capture.layer(node), _operation(node), "backward", gradient, 0)
            backward_values[node.name] = replayed[node.name]

    def _advance(self, replays: Replays[Any], node: Node, replayed: dict[str, Any]) -> bool:
        """Add the format's value of a node to `replayed`; return whether the node rounded."""
        computed = replays.interpreter.converted(self.run.values[node.name])
        exact = replays.interpreter.applied(node, replayed)
        replayed[node.name] = computed
        return not _is_same(computed, exact, replays)

    def _flips(
        self, interpreter: Interpreter[Any], branches: tuple[Branches, ...]
    ) -> dict[str, int]:
        """The number of branches that differ from the exact network's, by layer."""
        keys = corresponding(branches, self.capture)
        if keys is None:
            return {}
        saved = sample_of_saved(interpreter.saved_values_of(self.run, 0), 0)
        return {f.layer: f.flips + f.tie_flips for f in flips(branches, saved, keys)}


def _operation(node: Node) -> str:
    """The name of a node's operation, without namespace and overload."""
    return str(node.target).removeprefix("aten.").rsplit(".", 1)[0]


def _is_same(a: Any, b: Any, replays: Replays[Any]) -> bool:
    """Whether a and b hold the same numbers; outputs that one of them lacks count as equal."""
    if isinstance(a, list | tuple):
        return all(
            x is None or y is None or _is_same(x, y, replays) for x, y in zip(a, b, strict=True)
        )
    if index_arrays.is_index_array(a):
        return np.array_equal(index_arrays.of_one(a), index_arrays.of_one(b))
    return replays.is_same(a, b)
