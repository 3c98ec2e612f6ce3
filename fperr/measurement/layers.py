"""`fperr.trace_layers`: where along the network the error of a gradient arises.

Mixed replays: operations up to one of them as the format computed them, the rest exact. Each step
to the next operation adds one vector to the error, and the vectors sum to the whole of it:

    g_hat - g = cast + sum over forward operations + loss + sum over backward operations
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fperr.exact.arithmetic import Array
from fperr.exact.certified import Certifier, log2_relative_radius, losses, midpoints, to_balls
from fperr.exact.engine import GUARD_BITS
from fperr.exact.graph import Node
from fperr.exact.interpreter import FloatRun, ForwardRun, Interpreter, float_run
from fperr.exact.logit_gradient import logit_gradient
from fperr.exact.mp import MpArithmetic
from fperr.exact.routing import corresponding, decisions_of, flips
from fperr.formats import of_dtype
from fperr.measurement.arguments import Job, checked_job
from fperr.measurement.network import FloatGradient, FormatNetwork
from fperr.measurement.stages import row, scaled
from fperr.report.layers import LayerReport
from fperr.theory.losses import Context

_BITS = 160


@dataclass(frozen=True, slots=True)
class Step:
    """One operation's part in the error.

    Attributes:
        layer: name of the node, or `"cast"`, `"loss"`.
        operation: what it does.
        half: `"cast"`, `"forward"`, `"loss"` or `"backward"`.
        gradient: (1, entries): exact from here on, the format's up to and including here.
        flips: decisions made here that differ from the exact network's, those at ties included.
    """

    layer: str
    operation: str
    half: str
    gradient: Array
    flips: int


def trace_layers(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | None = None,
    *,
    target: Tensor | None = None,
    loss: str = "ce",
    format: str = "float32",
) -> LayerReport:
    """Split the error of an input gradient by the operations of the network.

    Every sample runs by itself (batch size 1). Costs about one exact gradient for each operation
    that rounds.

    Args:
        model: (batch, *shape) -> logits (batch, K), in evaluation mode.
        x: (n, *shape).
        y: (n,) true labels; without y and target, the class that the model predicts.
        target: (n,) target classes: a targeted loss.
        loss: name of a loss.
        format: name of a format.

    Returns:
        A row for each sample and operation.

    Raises:
        TypeError, ValueError, FperrError: as `fperr.measure`.
    """
    if y is None and target is None:
        y = _predictions(model, x)
    job = checked_job(model=model, x=x, y=y, target=target, losses=[loss], formats=[format])
    own = FormatNetwork(job.model, of_dtype(job.x.dtype), autocast=False)
    network = FormatNetwork(job.model, job.formats[0], autocast=False)
    rows: list[dict[str, object]] = []
    for sample in range(len(job.x)):
        tracer = _Tracer(job, own, network, sample)
        rows += [{"sample": sample, **r} for r in tracer.rows()]
    return LayerReport.from_rows(rows, job.losses[0].name, job.formats[0].name)


def _predictions(model: nn.Module, x: Tensor | np.ndarray) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.as_tensor(x))
    return logits.argmax(1)


class _Tracer:
    """One sample: the exact gradient, the format's, and everything between them."""

    def __init__(self, job: Job, own: FormatNetwork, network: FormatNetwork, sample: int) -> None:
        self.x = job.x[sample : sample + 1]
        self.loss, self.network = job.losses[0], network
        self.exact_capture, self.capture = own.capture(self.x), network.capture(self.x)
        targeted = job.target is not None
        labels = job.target if job.target is not None else job.y
        assert labels is not None
        self.label, self.targeted = labels[sample : sample + 1], targeted
        self.y = None if job.y is None else int(job.y[sample])
        y = None if job.y is None else job.y[sample : sample + 1]
        self.computed: FloatGradient = network.gradient(
            self.x, self.label, self.loss, Context(targeted, y), mean=False
        )
        with network.running():
            self.run: FloatRun = float_run(
                self.capture,
                network.cast(self.x),
                self.computed.logit_gradient,
                everything=True,
            )
        self.vectors = MpArithmetic(_BITS + GUARD_BITS)

    def rows(self) -> Iterator[dict[str, object]]:
        """A row for each step."""
        A = self.vectors
        gradient, exact_run = self._exact_gradient()
        steps = self._steps(exact_run)
        computed = A.from_torch(self.computed.gradient.reshape(1, -1))
        g = scaled(A, gradient)
        whole = scaled(A, A.sub(computed, gradient))
        before = gradient
        for step in steps:
            part = scaled(A, A.sub(step.gradient, before))
            so_far = scaled(A, A.sub(step.gradient, gradient))
            vanishes = not part.values.any() or not whole.values.any()
            yield {
                "layer": step.layer,
                "operation": step.operation,
                "half": step.half,
                "contribution": part.ratio(g),
                "share": 0.0 if vanishes else part.ratio(whole) * part.cosine(whole),
                "delta_so_far": so_far.ratio(g),
                "flips": step.flips,
            }
            before = step.gradient

    def _v(self, z: Array) -> Array:
        """The exact logit gradient (1, K) at logits of mpmath, with the format's scale."""
        A = self.vectors
        c = A.from_torch(self.computed.scale.c)[0]
        v = logit_gradient(
            self.loss.kind,
            A.context,
            list(z[0]),
            int(self.label),
            c=c,
            targeted=self.targeted,
            y=self.y,
        )
        if v is None:
            raise ValueError(f"loss {self.loss.name!r} is undefined at this sample: leave it out")
        return row(A, v)

    def _gradient(
        self, interpreter: Interpreter, run: ForwardRun, given: Mapping[str, Any] | None = None
    ) -> Array:
        A = interpreter.arithmetic
        v = to_balls(A, self._v(midpoints(run.logits)))  # type: ignore[arg-type]
        return midpoints(interpreter.products(run.readings, v, given=given))

    def _exact_gradient(self) -> tuple[Array, tuple[Interpreter, ForwardRun]]:
        certifier = Certifier(self.exact_capture, _BITS)

        def attempt(interpreter: Interpreter) -> tuple[Interpreter, ForwardRun]:
            return interpreter, interpreter.forward(self.x)

        found, _ = certifier.raised(
            attempt,
            lambda result: -log2_relative_radius(result[1].logits),
            lambda interpreter: losses(interpreter, self.x, None),
        )
        return self._gradient(*found), found

    def _steps(self, exact: tuple[Interpreter, ForwardRun]) -> list[Step]:
        """Every state between the exact gradient and the format's, in order."""
        certifier = Certifier(self.capture, _BITS)
        steps, _ = certifier.raised(
            lambda interpreter: list(self._walk(interpreter, exact)),
            lambda steps: float("inf") if steps else 0.0,
            lambda interpreter: losses(interpreter, self.network.cast(self.x), None),
        )
        return steps

    def _walk(
        self, interpreter: Interpreter, exact: tuple[Interpreter, ForwardRun]
    ) -> Iterator[Step]:
        cast_x = self.network.cast(self.x)
        flips_at = self._flips(interpreter, exact)
        run = interpreter.forward(cast_x)
        gradient = self._gradient(interpreter, run)
        yield Step("cast", "weights and input rounded", "cast", gradient, 0)
        given: dict[str, Any] = {
            self.capture.placeholders[0].name: interpreter.arithmetic.from_torch(cast_x)
        }
        for node in self.capture.forward:
            rounds = self._advance(interpreter, node, given)
            if rounds:
                run = interpreter.forward(cast_x, given)
                gradient = self._gradient(interpreter, run)
            if rounds or node.name in flips_at:
                yield Step(
                    node.name, _operation(node), "forward", gradient, flips_at.get(node.name, 0)
                )
        v = interpreter.arithmetic.from_torch(self.computed.logit_gradient)
        gradient = midpoints(interpreter.products(run.readings, v))
        yield Step("loss", self.loss.name, "loss", gradient, 0)
        given = {**run.values, self.capture.placeholders[1].name: v}
        passed: dict[str, Any] = {}
        for node in self.capture.backward:
            if self._advance(interpreter, node, given):
                passed[node.name] = given[node.name]
                gradient = midpoints(interpreter.products(run.readings, v, given=passed))
                yield Step(node.name, _operation(node), "backward", gradient, 0)
            passed[node.name] = given[node.name]

    def _advance(self, interpreter: Interpreter, node: Node, given: dict[str, Any]) -> bool:
        """Put what the format computed at `node` among the given; whether that is not exact."""
        found = interpreter.converted(self.run.values[node.name])
        exact = interpreter.applied(node, given)
        given[node.name] = found
        return not _equal(found, exact, interpreter)

    def _flips(
        self, interpreter: Interpreter, exact: tuple[Interpreter, ForwardRun]
    ) -> dict[str, int]:
        """How many decisions differ from the exact network's, by layer that decides."""
        decisions = decisions_of(self.exact_capture, exact[1], exact[0].arithmetic)
        keys = corresponding(decisions, self.capture)
        if keys is None:
            return {}
        theirs = interpreter.readings_of(self.run, 0)
        return {f.layer: f.flips + f.tie_flips for f in flips(decisions, theirs, keys)}


def _operation(node: Node) -> str:
    return str(node.target).removeprefix("aten.").rsplit(".", 1)[0]


def _equal(a: Any, b: Any, interpreter: Interpreter) -> bool:
    """Whether both hold the same numbers; outputs that the exact side leaves out count as equal."""
    if isinstance(a, list | tuple):
        return all(
            x is None or y is None or _equal(x, y, interpreter) for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return interpreter.arithmetic.equal(a, b)
