"""The reference side of a measurement: exact logits, Jacobian rows and what a format's run left."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fperr.errors import CaptureAuditError
from fperr.exact.arithmetic import Array
from fperr.exact.engine import GUARD_BITS, log2_difference
from fperr.exact.graph import Capture, probe
from fperr.exact.interpreter import FloatRun, ForwardRun, Interpreter
from fperr.exact.logit_gradient import cross_entropy
from fperr.exact.mp import MpArithmetic
from fperr.measurement.network import FormatNetwork
from fperr.measurement.stages import Maps, Scaled, row, scaled


class ExactSample:
    """One sample through the exact network.

    Attributes:
        run: the exact forward run.
        z: the K logits.
        order: the classes by descending logit.
        log2_disagreement: log2 of the largest relative difference, in norm, of logit gradients
            and input gradients of cross-entropy between `digits` and twice as many; -inf if equal.
    """

    def __init__(self, reference: "Reference", x: Tensor) -> None:
        self._reference = reference
        self.run: ForwardRun = reference.interpreter.forward(x)
        self.z: list[Any] = list(self.run.logits[0])
        self.order = sorted(range(len(self.z)), key=lambda i: -self.z[i])
        self._x = x

    @cached_property
    def jacobian(self) -> Array:
        """The rows of J, (K, entries)."""
        return self._reference.interpreter.jacobian(self.run.readings)

    @cached_property
    def rows(self) -> list[Scaled]:
        """The rows of J in floating point with an exponent each."""
        return [scaled(self._reference.arithmetic, r) for r in self.jacobian]

    @cached_property
    def logits(self) -> Tensor:
        """The logits (1, K), rounded to float64."""
        return self._reference.arithmetic.to_torch(self.run.logits)

    @cached_property
    def log2_disagreement(self) -> float:
        """See the class."""
        A, control = self._reference.arithmetic, self._reference.control
        run = control.forward(self._x)
        worst = -math.inf
        for label in self.order[:2]:
            v = row(A, cross_entropy(A.context, self.z, label, A.context.one))
            w_context = self._reference.control_arithmetic.context
            w = row(
                self._reference.control_arithmetic,
                cross_entropy(w_context, list(run.logits[0]), label, w_context.one),
            )
            g = A.matmul(v, self.jacobian)
            h = control.pullback(run.readings, w).reshape(g.shape)
            for ours, finer in ((v, w), (g, h)):
                worst = max(worst, log2_difference(ours, finer, self._reference.control_arithmetic))
        return worst


class Reference:
    """The exact network at `digits` digits, and at twice as many to check it.

    Args:
        network: the model in its own dtype.
        x: the inputs, of which the first gives the shape.
        digits: decimal digits that shall be correct.
    """

    def __init__(self, network: FormatNetwork, x: Tensor, digits: int) -> None:
        self.network = network
        self.digits = digits
        bits = math.ceil(digits * math.log2(10)) + GUARD_BITS
        self.arithmetic = MpArithmetic(bits)
        self.control_arithmetic = MpArithmetic(2 * bits)
        self.capture: Capture = network.capture(x[:1])
        self.interpreter = Interpreter(self.capture, self.arithmetic)
        self.control = Interpreter(self.capture, self.control_arithmetic)

    def sample(self, x: Tensor) -> ExactSample | None:
        """The exact network at x (1, *shape); None where x is not finite.

        Raises:
            CaptureAuditError: eager run and graph differ at this sample.
        """
        if not bool(x.isfinite().all()):
            return None
        with self.network.running():
            self.capture.audit(self.network.model, x, probe(self.network.model(x)))
        return ExactSample(self, x)

    def certifies(self, exact: ExactSample) -> bool:
        """Whether `digits` and twice as many agree to `digits` digits at this sample."""
        return exact.log2_disagreement <= -self.digits * math.log2(10)


@dataclass(frozen=True, slots=True)
class FormatSample:
    """One sample, exactly, through the network with weights and input rounded to a format.

    Attributes:
        z: the K exact logits of the cast network; None where weights or input overflow the format.
        maps: the Jacobians; the format's own is None where its run is not finite.
    """

    z: list[Any] | None
    maps: Maps


class FormatReference:
    """The exact side of one format: its capture, its weights, what its runs left behind."""

    def __init__(self, reference: Reference, network: FormatNetwork, x: Tensor) -> None:
        self.network = network
        self._reference = reference
        self._single = network.capture(x[:1])
        constants = self._single.constants().values()
        self._weights_are_finite = all(bool(t.isfinite().all()) for t in constants)
        self._is_own = _same_network(self._single, reference.capture)
        self._interpreter = (
            reference.interpreter
            if self._is_own or not self._weights_are_finite
            else Interpreter(self._single, reference.arithmetic)
        )

    def run(self, x: Tensor, v: Tensor) -> FloatRun:
        """What the format's forward pass leaves for the backward pass on a batch.

        Raises:
            CaptureAuditError: the graph of the batch is not that of a single sample.
        """
        if not self.network.capture(x).is_like(self._single):
            raise CaptureAuditError(
                f"the graph for a batch of {len(x)} differs from that for one sample in "
                f"{self.network.format.name}: use batch_size=1"
            )
        return self.network.saved(x, v)

    def sample(self, x: Tensor, run: FloatRun, i: int, exact: ExactSample) -> FormatSample:
        """The exact Jacobians that belong to sample i of a batch x, of which `run` is the run."""
        mine, interpreter = x[i : i + 1], self._interpreter
        cast_x = self.network.cast(mine)
        if not (self._weights_are_finite and bool(cast_x.isfinite().all())):
            return FormatSample(None, Maps(None, None, exact.jacobian))
        if self._is_own and torch.equal(cast_x.double(), mine.double()):
            cast, jacobian = exact.run, exact.jacobian
        else:
            cast = interpreter.forward(cast_x)
            jacobian = interpreter.jacobian(cast.readings)
        own = self._own_jacobian(run, i, cast, jacobian)
        return FormatSample(list(cast.logits[0]), Maps(own, jacobian, exact.jacobian))

    def _own_jacobian(
        self, run: FloatRun, i: int, cast: ForwardRun, jacobian: Array
    ) -> Array | None:
        """The J~ of sample i: that of the cast network, where the run left the same data."""
        interpreter = self._interpreter
        if not all(bool(interpreter.part(run, name, i).isfinite().all()) for name in run.values):
            return None
        data = interpreter.readings_of(run, i)
        same = data.same_as(cast.readings, self._reference.arithmetic)
        return jacobian if same else interpreter.jacobian(data)


def _same_network(a: Capture, b: Capture) -> bool:
    """Whether two captures are the same operations with the same numbers in them."""
    if not a.is_like(b):
        return False
    mine, theirs = a.constants(), b.constants()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name].double(), theirs[name].double()) for name in mine
    )
