"""`fperr.trace_layers`: where along the network the error of a gradient arises.

Mixed replays: operations up to one of them as the format computed them, the rest exact. Each step
to the next operation adds one vector to the error, and the vectors sum to the whole of it:

    g_hat - g = cast + sum over forward operations + loss + sum over backward operations
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from fperr import checks
from fperr.caller_state import in_neutral_state
from fperr.exact.adaptive_precision import (
    AdaptivePrecision,
    log2_relative_radius,
    losses,
    midpoints,
)
from fperr.exact.arithmetic import Array
from fperr.exact.ball.arithmetic import BallArithmetic
from fperr.exact.ball.array import BallArray
from fperr.exact.branches import branches_of, corresponding, flips
from fperr.exact.engines.scaled import scaled
from fperr.exact.engines.vectors import MpVectors
from fperr.exact.error_bound import decide_order, logit_gradient_balls
from fperr.exact.graph import Node
from fperr.exact.interpreter import ForwardRun, Interpreter
from fperr.exact.mp import MpArithmetic
from fperr.exact.saved_values import FloatRun, float_run
from fperr.formats import of_dtype
from fperr.losses import Context
from fperr.measurement.arguments import MeasureRequest, checked_request
from fperr.networks.checks import check_function_of_sample
from fperr.networks.in_format import FloatGradient, FormatNetwork
from fperr.networks.model import Accessor
from fperr.report.layers import LayerReport
from fperr.vocabulary import FormatName

_BITS = 120  # of every gradient between the exact one and the format's


@dataclass(frozen=True, slots=True)
class LayerStep:
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


@in_neutral_state
def trace_layers(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    loss: str = "ce",
    format: FormatName = "float32",
    logits: Accessor | str | int | None = None,
    accept_probabilities: bool = False,
    progress: bool | None = None,
) -> LayerReport:
    """Split the error of an input gradient by the operations of the network.

    Every sample runs by itself (batch size 1). Costs about one exact gradient for each operation
    that rounds.

    Args:
        model: (batch, *shape) -> logits (batch, K), in evaluation mode.
        x: (n, *shape).
        y: (n,) true labels; without y and target, the class that the model predicts.
        targets: (n,) target classes: a targeted loss.
        loss: name of a loss.
        format: name of a format.
        logits: where the logits are in what the model returns: a name, an index or a function.
        accept_probabilities: trace a model that returns probabilities.
        progress: show a progress bar; None: only where standard error is a terminal.

    Returns:
        A row for each sample and operation.

    Raises:
        TypeError, ValueError, FperrError: as `fperr.measure`.
    """
    checks.optional_flag("progress", progress)
    assigned = None if y is not None or targets is not None else ["untargeted_unsuccessful"]
    job = checked_request(
        model=model,
        x=x,
        y=y,
        targets=targets,
        losses=[loss],
        formats=[format],
        scenarios=assigned,
        logits=logits,
        accept_probabilities=accept_probabilities,
    )
    broken = (~job.x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"x is not finite at samples {broken}: leave them out")
    own = FormatNetwork(job.model, of_dtype(job.x.dtype), autocast=False)
    check_function_of_sample(own, job.x)
    network = FormatNetwork(job.model, job.formats[0], autocast=False)
    rows: list[dict[str, object]] = []
    hidden = None if progress is None else not progress
    for sample in tqdm(range(len(job.x)), desc="layers", unit="sample", disable=hidden):
        tracer = _Tracer(job, own, network, sample)
        if tracer.is_finite:
            rows += [{"sample": sample, **r} for r in tracer.rows()]
        else:
            warnings.warn(
                f"sample {sample} overflows in {format}: its error cannot be split, and it is "
                "left out",
                stacklevel=3,
            )
    return LayerReport.from_rows(rows, job.losses[0].name, job.formats[0].name)


class _Tracer:
    """One sample: the exact gradient, the format's, and everything between them."""

    def __init__(
        self, job: MeasureRequest, own: FormatNetwork, network: FormatNetwork, sample: int
    ) -> None:
        self.x = job.x[sample : sample + 1]
        self.loss, self.network = job.losses[0], network
        self.exact_capture, self.capture = own.capture(self.x), network.capture(self.x)
        targeted = job.targets is not None
        labels = job.targets if job.targets is not None else job.y
        if labels is None:
            self.label = own.logits(self.x).argmax(1)
        else:
            self.label = labels[sample : sample + 1]
        self.targeted = targeted
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
        self.vectors = MpVectors(MpArithmetic(2 * _BITS))

    @property
    def is_finite(self) -> bool:
        """Whether the format's run and gradient are."""
        parts = self.computed.logits, self.computed.logit_gradient, self.computed.gradient
        return all(bool(part.isfinite().all()) for part in parts)

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

    def _gradient(self, interpreter: Interpreter, run: ForwardRun, bits: list[float]) -> Array:
        """The gradient of the loss, exact from the run's logits on; appends the bits proved."""
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
        return self._noted(interpreter.products(run.saved_values, v), bits)

    def _noted(self, balls: BallArray, bits: list[float]) -> Array:
        bits.append(-log2_relative_radius(balls))
        return midpoints(balls, self.vectors.context)

    def _exact_gradient(self) -> tuple[Array, tuple[Interpreter, ForwardRun]]:
        def attempt(interpreter: Interpreter) -> tuple[Array, Interpreter, ForwardRun, float]:
            run, bits = interpreter.forward(self.x), list[float]()
            gradient = self._gradient(interpreter, run, bits)
            return gradient, interpreter, run, min(bits)

        (gradient, interpreter, run, _), _ = AdaptivePrecision(self.exact_capture, _BITS).raised(
            attempt, lambda found: found[3], lambda i: losses(i, self.x, None)
        )
        return gradient, (interpreter, run)

    def _steps(self, exact: tuple[Interpreter, ForwardRun]) -> list[LayerStep]:
        """Every state between the exact gradient and the format's, in order, each one proved."""

        def attempt(interpreter: Interpreter) -> tuple[list[LayerStep], float]:
            bits: list[float] = []
            return list(self._walk(interpreter, exact, bits)), min(bits)

        cast_x = self.network.cast(self.x)
        (steps, _), _ = AdaptivePrecision(self.capture, _BITS).raised(
            attempt, lambda found: found[1], lambda i: losses(i, cast_x, None)
        )
        return steps

    def _walk(
        self,
        interpreter: Interpreter,
        exact: tuple[Interpreter, ForwardRun],
        bits: list[float],
    ) -> Iterator[LayerStep]:
        cast_x = self.network.cast(self.x)
        flips_at = self._flips(interpreter, exact)
        run = interpreter.forward(cast_x)
        gradient = self._gradient(interpreter, run, bits)
        yield LayerStep("cast", "weights and input rounded", "cast", gradient, 0)
        given: dict[str, Any] = {
            self.capture.placeholders[0].name: interpreter.arithmetic.from_torch(cast_x)
        }
        for node in self.capture.forward:
            rounds = self._advance(interpreter, node, given)
            if rounds:
                run = interpreter.forward(cast_x, given)
                gradient = self._gradient(interpreter, run, bits)
            if rounds or node.name in flips_at:
                yield LayerStep(
                    node.name, _operation(node), "forward", gradient, flips_at.get(node.name, 0)
                )
        v = interpreter.arithmetic.from_torch(self.computed.logit_gradient)
        gradient = self._noted(interpreter.products(run.saved_values, v), bits)
        yield LayerStep("loss", self.loss.name, "loss", gradient, 0)
        given = {**run.values, self.capture.placeholders[1].name: v}
        passed: dict[str, Any] = {}
        for node in self.capture.backward:
            if self._advance(interpreter, node, given):
                passed[node.name] = given[node.name]
                moved = interpreter.products(run.saved_values, v, overrides=passed)
                gradient = self._noted(moved, bits)
                yield LayerStep(node.name, _operation(node), "backward", gradient, 0)
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
        decisions = branches_of(self.exact_capture, exact[1], exact[0].arithmetic)
        keys = corresponding(decisions, self.capture)
        if keys is None:
            return {}
        theirs = interpreter.saved_values_of(self.run, 0)
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
