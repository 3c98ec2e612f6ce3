"""The audit of values: is what was computed exactly true of the function that PyTorch computes?

After an exact run the captured graph is run once more by PyTorch in float64, with the same v, and
logits and gradient are compared, sample by sample. They must agree to what float64 itself may be
off there, which the run estimates (`float64_run`).
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fperr.errors import ContradictedError, UndecidedError
from fperr.exact import index_arrays
from fperr.exact.arithmetic import Arithmetic, Array
from fperr.exact.audit.float64_branches import ExactNumbers
from fperr.exact.audit.float64_error import error_of_norm, norm
from fperr.exact.audit.float64_run import Float64Run, float64_run
from fperr.exact.graph import Node
from fperr.exact.interpreter import ForwardRun, Interpreter

# float64's own error up to which it can say something, relative to the norm of logits or gradient
_USABLE = 2.0**-10
_LARGEST_EXPONENT = 900  # of a gradient for a v of size 1, which float64 can hold on the way

Verdict = Literal["confirmed", "float64 cannot say"]


@dataclass(frozen=True, slots=True)
class SampleAudit:
    """What PyTorch in float64 says of the exact network at one sample.

    Attributes:
        verdict: `"confirmed"`: logits and gradient agree to float64's estimated error there;
            `"float64 cannot say"`: that error is too large, which takes nothing from the exact
            network.
        difference: |float64's gradient - exact gradient|_2 / |exact gradient|_2; NaN for 0/0.
        estimate: the estimate of float64's error in the same measure.
    """

    verdict: Verdict
    difference: float
    estimate: float


class _Exact(ExactNumbers):
    """The numbers of an exact run at a batch of samples."""

    def __init__(self, interpreter: Interpreter, run: ForwardRun) -> None:
        self._interpreter, self._values = interpreter, dict(run.values)
        self._of_v = _descendants(interpreter)

    def numbers(self, node: Node) -> Any:
        """What a node holds; None if it depends on v."""
        if node.name in self._of_v:
            return None
        if node.name not in self._values:  # of the backward half
            for source in node.all_input_nodes:
                self.numbers(source)
            self._values[node.name] = self._interpreter.applied(node, self._values)
        return self._values[node.name]

    def sides(self, node: Node, kink: float, entries: Tensor) -> Tensor | None:
        """See `ExactNumbers`."""
        a = self.numbers(node)
        A = self._interpreter.arithmetic
        return None if a is None else _signs(A, self._entries(a, entries), kink)

    def relations(self, node: Node, entries: Tensor) -> Tensor | None:
        """See `ExactNumbers`."""
        A, shape = self._interpreter.arithmetic, self._interpreter.capture.shapes[node.name]
        operands = []
        for argument in node.args[:2]:
            if not isinstance(argument, Node):
                operands.append(argument)
                continue
            a = self.numbers(argument)
            if a is None:
                return None
            a = A.from_index_array(a) if index_arrays.is_index_array(a) else a
            operands.append(self._entries(A.expand(a, shape), entries))
        first, second = operands
        return _signs(A, first, second)

    def positions(self, node: Node) -> Tensor | None:
        """See `ExactNumbers`."""
        value = self.numbers(node)
        if value is None:
            return None
        return _by_sample(value[1] if isinstance(value, list | tuple) else value)

    def are_equal(self, node: Node, first: Tensor, second: Tensor) -> Tensor:
        """See `ExactNumbers`."""
        A, a = self._interpreter.arithmetic, self.numbers(node)
        parts = [A.take(a, _index(part)) for part in (first, second)]
        return _by_sample(A.same(*parts))

    def _entries(self, a: Array, entries: Tensor) -> Array:
        return self._interpreter.arithmetic.take(a, entries.cpu().numpy())


def _index(positions: Tensor) -> Any:
    """Flat positions by sample as an arithmetic takes them."""
    return positions[0].cpu().numpy() if len(positions) == 1 else positions


def _signs(A: Arithmetic[Any], a: Array, b: Array | float) -> Tensor:
    """The signs of a - b."""
    if isinstance(b, int | float):
        b = A.add(A.zeros(A.shape(a)), float(b))
    alike = A.same(a, b)
    difference = A.where(alike, A.zeros(A.shape(a)), A.sub(a, b))
    return _by_sample(A.sign(difference))


def _by_sample(choice: Any) -> Tensor:
    """A mask or indices with a leading dimension of samples."""
    if isinstance(choice, Tensor):
        return choice
    every: Tensor = torch.from_numpy(np.array(choice))[None]
    return every


def _descendants(interpreter: Interpreter) -> set[str]:
    """The names of the nodes that depend on v."""
    capture = interpreter.capture
    names = {capture.placeholders[1].name}
    for node in capture.backward:
        if any(source.name in names for source in node.all_input_nodes):
            names.add(node.name)
    return names


def audit_sample(
    interpreter: Interpreter,
    run: ForwardRun,
    x: Tensor,
    v: Tensor,
    gradient: Array,
    sample: int = 0,
    *,
    logits_off: float = 0.0,
) -> SampleAudit:
    """`audit_values` at one sample.

    Args:
        interpreter: the exact network, for one sample.
        run: its run at x.
        x: (1, *shape), taken exactly.
        v: (1, K), floating point, taken exactly.
        gradient: the exact J^T v, of the arithmetic.
        sample: its number, for the error.
        logits_off: how far the exact logits may be off, beyond what their arithmetic knows.

    Raises:
        ContradictedError: see `audit_values`.
        UndecidedError: the gradient is infinite or undefined at the arithmetic's precision.
    """
    A = interpreter.arithmetic
    if not A.is_finite(gradient):
        raise UndecidedError("the gradient is infinite or undefined: leave the sample out")
    error = float(A.error_norms(gradient)[0])
    values, exponent = A.to_scaled(gradient)
    result = values.reshape(1, -1), torch.tensor([exponent])
    off = [math.ldexp(error, -exponent) if abs(exponent) < _LARGEST_EXPONENT else math.inf]
    (audit,) = audit_values(
        interpreter,
        run,
        x,
        v,
        result,
        off=torch.tensor(off, dtype=torch.float64),
        logits_off=logits_off,
        names=[sample],
    )
    assert audit is not None
    return audit


def audit_values(
    interpreter: Interpreter,
    run: ForwardRun,
    x: Tensor,
    v: Tensor,
    gradient: tuple[Tensor, Tensor],
    *,
    off: Tensor,
    logits_off: float = 0.0,
    is_usable: Tensor | None = None,
    names: Sequence[int] | None = None,
) -> list[SampleAudit | None]:
    """Compare an exact run at a batch of samples with PyTorch's float64.

    Args:
        interpreter: the exact network, for one sample.
        run: its run at x: of one sample, or of several for batched arithmetics.
        x: (samples, *shape), taken exactly.
        v: (samples, K), floating point, taken exactly.
        gradient: the exact J^T v: (samples, entries) float64 and exponents (samples,), its numbers
            are values * 2**exponent.
        off: (samples,), upper bounds on the norm of the error of those values; of mpmath, which has
            none, 0.
        logits_off: see `audit_sample`.
        is_usable: (samples,) bool, where the exact run settled its decisions; elsewhere the answer
            is None.
        names: the numbers of the samples, for the error; None: 0, 1, ...

    Raises:
        ContradictedError: at one sample they differ by more than float64 is off; names the first
            operation whose value differs, with both values.
    """
    exact = _Exact(interpreter, run)
    exponents_of_v = torch.frexp(v.to(torch.float64).abs().amax(1)).exponent
    v = torch.ldexp(v.to(torch.float64), -exponents_of_v[:, None])
    float64 = float64_run(interpreter.capture, x, v, exact)
    logits = _float64(interpreter.arithmetic, run.logits).to(float64.logits.device)
    logits = logits.expand(len(x), -1)
    values, exponents = (part.to(float64.logits.device) for part in gradient)
    radii = interpreter.arithmetic.error_norms(run.logits).expand(len(x))
    audits: list[SampleAudit | None] = []
    for i in range(len(x)):
        if is_usable is not None and not is_usable[i]:
            audits.append(None)
            continue
        error = float(float64.logits_error[i]) + float(radii[i]) + logits_off
        on_logits = _Part.of(float64.logits[i], logits[i], error)
        on_gradient, exponent = None, int(exponents[i]) - int(exponents_of_v[i])
        if abs(exponent) <= _LARGEST_EXPONENT:
            scale = torch.tensor(exponent, device=values.device)
            scaled = torch.ldexp(values[i], scale)
            error = float(float64.gradient_error[i]) + math.ldexp(float(off[i]), exponent)
            on_gradient = _Part.of(float64.gradient[i], scaled, error)
        explain = functools.partial(_explained, interpreter, run, x, v, exact, i)
        name = i if names is None else names[i]
        audits.append(_judged(on_logits, on_gradient, explain, name))
    return audits


def _judged(
    logits: "_Part", gradient: "_Part | None", explain: Callable[[], str], sample: int
) -> SampleAudit:
    """The verdict on one sample, of whose gradient float64 may know nothing."""
    parts = [logits] if gradient is None else [logits, gradient]
    for part in parts:
        if part.is_usable and part.difference > part.error:
            raise ContradictedError(
                f"sample {sample}: PyTorch in float64 and the exact network differ by "
                f"{part.difference / part.size:.2g} in relative norm, where float64 is off by "
                f"about {part.error / part.size:.2g}: {explain()}. One of the two does not compute "
                "what the model says: please report it, with the model"
            )
    if gradient is None:
        return SampleAudit("float64 cannot say", math.nan, math.inf)
    can_say = logits.is_usable and gradient.is_usable
    return SampleAudit(
        "confirmed" if can_say else "float64 cannot say",
        gradient.relative(gradient.difference),
        gradient.relative(gradient.error),
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """Logits or gradient of one sample.

    Attributes:
        difference: the norm of float64's numbers minus the exact ones.
        size: the larger one of both norms; exact_size: that of the exact ones.
        error: the estimate of the norm of float64's error, with a bound on that of the exact ones.
    """

    difference: float
    size: float
    exact_size: float
    error: float

    @classmethod
    def of(cls, computed: Tensor, exact: Tensor, error: float) -> "_Part":
        """From numbers (entries,); masked logits, minus infinity in both, are left out."""
        apart = torch.where(computed == exact, 0.0, computed - exact)
        sizes = [float(norm(torch.where(t.isinf(), 0.0, t))) for t in (computed, exact)]
        return cls(float(norm(apart)), max(sizes), sizes[1], error)

    @property
    def is_usable(self) -> bool:
        """Whether float64 is off by little enough to say something. 0 without any error is."""
        return self.error <= _USABLE * self.size and math.isfinite(self.difference)

    def relative(self, number: float) -> float:
        """A norm relative to the exact one."""
        if self.exact_size:
            return number / self.exact_size
        return math.inf if number else math.nan


def _explained(
    interpreter: Interpreter, run: ForwardRun, x: Tensor, v: Tensor, exact: _Exact, sample: int
) -> str:
    """The first operation whose value differs at that sample, with both values, in words."""
    A, capture = interpreter.arithmetic, interpreter.capture
    float64 = float64_run(capture, x, v, exact, everything=True)
    values = dict(run.values)

    def observe(node: Node, value: Any) -> None:
        values[node.name] = value

    interpreter.pullback(run.saved_values, A.from_samples(v.to(torch.float64)[:, None]), observe)
    for node in (*capture.forward, *capture.backward):
        for number, rows, numbers in _results(float64, node, values.get(node.name)):
            text = _apart(rows, _numbers(A, numbers), len(x), sample)
            if text:
                result = f", result {number}" if number else ""
                what = f"{node.target} ({node}{result})"
                return f"the first value that differs is that of {what}: {text}"
    return "no operation of the graph differs by itself"


def _results(float64: Float64Run, node: Node, exact: Any) -> Iterator[tuple[int, Tensor, Any]]:
    """The results of a node that both runs have: number, rows in float64, exact numbers."""
    rows = float64.values[node.name]
    several = isinstance(rows, list | tuple)
    pairs = zip(rows, exact, strict=True) if several and exact is not None else [(rows, exact)]
    for number, (computed, numbers) in enumerate(pairs):
        if computed is not None and numbers is not None:
            yield number, computed if node.name in float64.batched else computed[None], numbers


def _numbers(A: Arithmetic[Any], a: Any) -> Tensor:
    """(samples or 1, *shape) of an array, a mask or indices."""
    if isinstance(a, Tensor):
        return a
    return (
        torch.from_numpy(np.array(a))[None] if index_arrays.is_index_array(a) else A.to_samples(a)
    )


def _apart(rows: Tensor, exact: Tensor, samples: int, sample: int) -> str:
    """Where one sample's numbers differ most, with both; "" where they agree."""
    is_alone = len(rows) == 1
    own = rows[:1] if is_alone else rows[:samples]
    computed = own[0 if is_alone else sample].to(torch.float64).cpu()
    true = exact[sample if len(exact) > 1 else 0].to(torch.float64).cpu().expand_as(computed)
    apart = torch.where(computed == true, 0.0, (computed - true).abs()).nan_to_num(math.inf)
    error = 0.0
    if rows.is_floating_point():
        wide = rows if not is_alone else rows.repeat(2, *[1] * (rows.ndim - 1))
        error = float(error_of_norm(wide.to(torch.float64), len(own))[-1 if is_alone else sample])
    if not norm(apart.flatten()) > error:
        return ""
    worst = int(apart.argmax())
    position = tuple(int(i) for i in np.unravel_index(worst, tuple(computed.shape)))
    return (
        f"{float(computed.flatten()[worst]):.17g} in float64, {float(true.flatten()[worst]):.17g} "
        f"exactly, at {position}"
    )


def _float64(A: Arithmetic[Any], a: Array) -> Tensor:
    """(samples or 1, entries): the nearest float64 numbers."""
    numbers = A.to_samples(a)
    return numbers.reshape(len(numbers), -1)
