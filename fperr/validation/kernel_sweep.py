"""An exhaustive sweep of this machine's exp and log: every float32 that log_softmax can meet.

Three routes lead to an exp or a log of PyTorch: the function on a contiguous tensor, the function
on a strided one (the scalar path), and the kernels of log_softmax themselves. Each is swept on the
arguments that reach it. float64 serves as the true value; its own error is added to the result.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from fperr.bounds.kernels import DOCUMENTED, Accuracy
from fperr.caller_state import in_neutral_state
from fperr.errors import FperrError
from fperr.exact.double_word import DoubleWordArithmetic

_CHUNK = 1 << 22
# From -2^-26 to 0, 1 is the float32 nearest to e^x: the next one below 1 is 1 - 2^-24.
_TINY = 2.0**-26
_LOWEST = -104.0  # e^x is 0 in float32 below: e^-104 < 2^-150, half the smallest subnormal
_LARGEST_LOG = 2.0**15  # classes
_ROW = 1 + 33  # two vectors of 16 and a tail of 1, after the entry that carries the upstream sum
_TAIL = 1 + 7  # shorter than any vector
_INNER = 33  # entries after the dimension of the classes: vectors and a tail, as in `_ROW`
_SAMPLE, _SMALLEST_SAMPLE = 1_000_000, 20_000  # arguments of float64
_FLOAT64_ERROR = 2.0**-28  # ulps of float32: twice what float64's own exp and log may be off
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The largest error of a function on a route.

    Attributes:
        function: Name of the function, "exp" or "log".
        route: Route by which PyTorch reaches it.
        count: Number of arguments tried.
        ulps: Largest error, in units in the last place of the true value.
        argument: Argument with the largest error.
    """

    function: str
    route: str
    count: int
    ulps: float
    argument: float


@in_neutral_state
def sweep(
    device: torch.device | str = "cpu", *, stride: int = 1, progress: bool = False
) -> tuple[dict[str, Accuracy], list[SweepResult]]:
    """Measure the largest errors of exp and log: in float32 exhaustively, in float64 on a sample.

    In float32 each route is tried on every number that can reach it. The logarithm inside
    log_softmax can be reached with sums between 1 and 2 only, and the exponential of its forward
    pass only through these sums. For float64 the result is the documented 1.0 ulp, which the sample
    checks. PyTorch computes float16 and bfloat16 in float32.

    Args:
        device: Device on which the kernels run.
        stride: Distance between the numbers tried; above 1 the result says that it is not
            exhaustive.
        progress: Whether to show a progress bar.

    Returns:
        The accuracies of float32 and float64, by name of the format; and the error of each function
        on each route.

    Raises:
        FperrError: exp is not 1 near 0, which the bounds take for granted; or float64's exp or log
            is worse than documented.
    """
    device_swept = torch.device(device)
    negative, above_one = (_bits(-_TINY), _bits(_LOWEST)), (_bits(1.0), _bits(_LARGEST_LOG))
    jobs = [
        *(("exp", route, f, negative, torch.exp) for route, f in _EXP.items()),
        ("exp", "log_softmax forward", _forward_exp, (negative[0], _bits(-17.0)), torch.exp),
        ("exp", "softmax", _softmax, (_bits(-20.0), negative[1]), torch.exp),
        *(("log", route, f, above_one, torch.log) for route, f in _LOG.items()),
        *(("log", route, f, (_bits(1.0), _bits(2.0)), torch.log) for route, f in _FORWARD.items()),
    ]
    results = []
    for path, route, function, (first, last), true in tqdm(jobs, disable=not progress, leave=False):
        results.append(
            _sweep_route(path, route, function, _floats(first, last, stride, device_swept), true)
        )
        if route in _EXP and path == "exp":
            _check_near_zero(
                route, function, _floats(_bits(-0.0), _bits(-_TINY), stride, device_swept)
            )
    worst = {name: max(s.ulps for s in results if s.function == name) for name in ("exp", "log")}
    numbers = sum(s.count for s in results)
    extent = "every float32" if stride == 1 else f"one float32 in {stride}"
    source = f"swept: {extent}, {len(results)} ways, {numbers:,} results"
    narrow = Accuracy(worst["exp"], worst["log"], _LARGEST_LOG, stride == 1, source)
    sample = _sample_float64(device_swept, max(_SMALLEST_SAMPLE, _SAMPLE // stride))
    largest_error = max(s.ulps for s in sample)
    if largest_error > DOCUMENTED.exp_ulps:
        raise FperrError(
            f"float64's exp or log is off by {largest_error:.3g} ulp, more than the documented 1.0"
        )
    sample_numbers = sum(s.count for s in sample)
    note = f"documented: at most 1.0 ulp; {largest_error:.2g} in a sample of {sample_numbers:,}"
    return {"float32": narrow, "float64": replace(DOCUMENTED, source=note)}, results + sample


def _sample_float64(device: torch.device, count: int) -> list[SweepResult]:
    """Compare float64's exp (in log_softmax's backward kernel) and log with double-word values."""
    A = DoubleWordArithmetic(device=device)
    results = []
    for path, function, low, high in (
        ("exp", _backward(_ROW), -700.0, 0.0),
        ("exp", _backward(_TAIL), -1.0, 0.0),
        ("log", torch.log, 1.0, _LARGEST_LOG),
    ):
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64).to(device)
        x = low + (high - low) * uniform
        true = getattr(A, path)(A.from_torch(x))
        difference = ((function(x) - true.high[0]) - true.low[0]).abs()
        ulps = torch.ldexp(difference, 53 - torch.frexp(true.high[0]).exponent)
        worst = int(ulps.argmax())
        results.append(
            SweepResult(path, "float64, a sample", count, float(ulps[worst]), float(x[worst]))
        )
    return results


def _bits(x: float) -> int:
    """The bit pattern of a float32 as an int32; adjacent numbers have adjacent patterns."""
    return int(torch.tensor(x, dtype=torch.float32).view(torch.int32))


def _floats(first: int, last: int, stride: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the float32 numbers of the bit patterns from `first` to `last`, in blocks."""
    for start in range(first, last + 1, _CHUNK * stride):
        stop = min(last + 1, start + _CHUNK * stride)
        yield torch.arange(start, stop, stride, dtype=torch.int32, device=device).view(
            torch.float32
        )


def _sweep_route(
    path: str, route: str, function: Function, arguments: Iterator[Tensor], true: Function
) -> SweepResult:
    numbers, worst, at = 0, 0.0, math.nan
    for x in arguments:
        exact = true(x.to(torch.float64))
        # an ulp of a number in [2^(e-1), 2^e) is 2^(e-24), and 2^-149 among the subnormals
        exponent = (torch.frexp(exact).exponent - 24).clamp_min(-149)
        error = torch.ldexp((function(x).to(torch.float64) - exact).abs(), -exponent)
        numbers += len(x)
        largest = error.max()
        if not largest <= worst:
            worst, at = float(largest), float(x[error.argmax()])
    return SweepResult(path, route, numbers, worst + _FLOAT64_ERROR, at)


def _check_near_zero(route: str, function: Function, arguments: Iterator[Tensor]) -> None:
    """Check that exp gives 1 down to -2^-26, where 1 is the nearest float32 to e^x.

    Raises:
        FperrError: It gives another number.
    """
    for x in arguments:
        values = function(x)
        if bool((values != 1).any()):
            worst = int((values - 1).abs().argmax())
            raise FperrError(
                f"exp ({route}) gives {float(values[worst])!r} at {float(x[worst])!r}: expected 1, "
                "which the bounds take for granted"
            )


def _contiguous(f: Function) -> Function:
    return f


def _strided(f: Function) -> Function:
    """Return `f` on a tensor that is not contiguous: PyTorch's scalar path."""

    def run(x: Tensor) -> Tensor:
        wide = torch.empty(len(x), 2, dtype=x.dtype, device=x.device)
        wide[:, 0] = x
        return f(wide[:, 0])

    return run


def _backward(length: int) -> Function:
    """Return exp as log_softmax's backward kernel computes it: 0 - exp(output) * (-1).

    The kernel returns upstream - exp(output) * sum(upstream) in each row. The first entry of a row
    carries an upstream of -1, the others 0; so they hold exp of their output.

    Args:
        length: Length of a row, which decides between vectors and the scalar tail.
    """

    def run(x: Tensor) -> Tensor:
        arguments = length - 1
        rows = -(-len(x) // arguments)
        padded = torch.cat([x, x.new_zeros(rows * arguments - len(x))]).reshape(rows, arguments)
        output = torch.cat([x.new_zeros(rows, 1), padded], 1)
        upstream = torch.zeros_like(output)
        upstream[:, 0] = -1.0
        back = torch.ops.aten._log_softmax_backward_data(upstream, output, 1, x.dtype)
        exponentials: Tensor = back[:, 1:].reshape(-1)[: len(x)]
        return exponentials

    return run


def _forward_exp(x: Tensor) -> Tensor:
    """Infer the exp that log_softmax's forward kernel computed, from its sum S = 1 + e^x.

    Where 1 + e^x with the backward kernel's exp gives S too, that exp is returned; elsewhere S - 1.
    """
    rows = torch.stack([torch.zeros_like(x), x], 1)
    S = torch.ops.aten._log_softmax(rows, 1, False)[:, 0].to(torch.float64).neg().exp()
    S = S.to(torch.float32)  # log S has more digits than S needs
    back = _backward(_ROW)(x)
    return torch.where(1 + back == S, back, S - 1)


def _strided_backward(x: Tensor) -> Tensor:
    """Compute exp as the backward kernel for another dimension than the last does."""
    columns = -(-len(x) // _INNER)
    padded = torch.cat([x, x.new_zeros(columns * _INNER - len(x))]).reshape(1, columns, _INNER)
    output = torch.cat([torch.zeros_like(padded[:, :1]), padded], 1)
    upstream = torch.zeros_like(output)
    upstream[:, 0] = -1.0
    back = torch.ops.aten._log_softmax_backward_data(upstream, output, 1, x.dtype)
    exponentials: Tensor = back[0, 1:].reshape(-1)[: len(x)]
    return exponentials


def _softmax(x: Tensor) -> Tensor:
    """Compute exp as softmax does, where the sum with e^0 is 1 exactly."""
    rows = -(-len(x) // _TAIL)
    padded = torch.cat([x, x.new_full((rows * _TAIL - len(x),), -100.0)]).reshape(rows, _TAIL)
    row_block = torch.cat([x.new_zeros(rows, 1), padded], 1)
    exponentials: Tensor = torch.softmax(row_block, 1)[:, 1:].reshape(-1)[: len(x)]
    return exponentials


_EXP: dict[str, Function] = {
    "contiguous": _contiguous(torch.exp),
    "strided": _strided(torch.exp),
    "log_softmax backward, vectors": _backward(_ROW),
    "log_softmax backward, tail": _backward(_TAIL),
    "log_softmax backward, another dimension": _strided_backward,
}
_LOG: dict[str, Function] = {
    "contiguous": _contiguous(torch.log),
    "strided": _strided(torch.log),
}


def _forward(length: int) -> Function:
    """Return log as log_softmax's forward kernel computes it, of sums 1 + e^t in (1, 2].

    Args:
        length: Length of a row, which decides between vectors and the scalar tail.
    """

    def run(S: Tensor) -> Tensor:
        rows = torch.full((len(S), length), -200.0, device=S.device)  # e^-200 is 0
        rows[:, 0] = 0.0
        rows[:, 1] = (S.to(torch.float64) - 1).log().clamp_min(-200.0).to(torch.float32)
        logarithms: Tensor = -torch.ops.aten._log_softmax(rows, 1, False)[:, 0]
        return logarithms

    return run


_FORWARD = {"log_softmax forward, vectors": _forward(40), "log_softmax forward, tail": _forward(2)}
