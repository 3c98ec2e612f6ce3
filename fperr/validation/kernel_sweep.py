"""An exhaustive sweep of this machine's exp and log: every float32 that log_softmax can meet.

Three ways lead to an exp or a log of PyTorch: the function on a contiguous tensor, on a strided
one (the scalar path), and the kernels of log_softmax themselves. All three are swept where they
can be reached. float64 serves as the true value; its own error of at most 2^-52 is added.
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
# Below, the largest float32 under 1 is closer to 1 than e^x is; and e^x underflows, respectively.
_TINY, _LOWEST = 2.0**-26, -104.0
_LARGEST_LOG = 2.0**15  # classes
_ROW = 1 + 33  # two vectors of 16 and a tail of 1, after the entry that carries the upstream sum
_TAIL = 1 + 7  # shorter than any vector
_INNER = 33
_SAMPLE, _FEWEST = 1_000_000, 20_000
_OF_FLOAT64 = 2.0**-28  # ulps of float32: twice what float64's own exp and log may be off
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Swept:
    """What a path was found to do.

    Attributes:
        path: which function.
        way: how it is reached.
        numbers: how many arguments were tried.
        ulps: the largest error, in units in the last place of the true value.
        at: where.
    """

    path: str
    way: str
    numbers: int
    ulps: float
    at: float


@in_neutral_state
def sweep(
    device: torch.device | str = "cpu", *, stride: int = 1, progress: bool = False
) -> tuple[dict[str, Accuracy], list[Swept]]:
    """Try every float32 argument, and a sample of those of float64.

    In float32 each way is tried on every number it can be reached with: the logarithm inside
    log_softmax between 1 and 2 only, the exponential inside its forward half by what its sums show.
    In float64 the documented 1.0 ulp is kept, and the sample is a check of it. The half formats are
    computed in float32.

    Args:
        device: where the kernels run.
        stride: try each stride-th number only; the result then says that it is not exhaustive.
        progress: show a bar.

    Raises:
        FperrError: exp is not 1 near 0, which the bounds take for granted; or float64's exp or log
            is worse than documented.
    """
    where = torch.device(device)
    negative, above_one = (_bits(-_TINY), _bits(_LOWEST)), (_bits(1.0), _bits(_LARGEST_LOG))
    jobs = [
        *(("exp", way, f, negative, torch.exp) for way, f in _EXP.items()),
        ("exp", "log_softmax forward", _forward_exp, (negative[0], _bits(-17.0)), torch.exp),
        ("exp", "softmax", _softmax, (_bits(-20.0), negative[1]), torch.exp),
        *(("log", way, f, above_one, torch.log) for way, f in _LOG.items()),
        *(("log", way, f, (_bits(1.0), _bits(2.0)), torch.log) for way, f in _FORWARD.items()),
    ]
    found = []
    for path, way, function, (first, last), true in tqdm(jobs, disable=not progress, leave=False):
        found.append(_swept(path, way, function, _floats(first, last, stride, where), true))
        if way in _EXP and path == "exp":
            _check_near_zero(way, function, _floats(_bits(-0.0), _bits(-_TINY), stride, where))
    worst = {name: max(s.ulps for s in found if s.path == name) for name in ("exp", "log")}
    numbers = sum(s.numbers for s in found)
    how = "every float32" if stride == 1 else f"one float32 in {stride}"
    source = f"swept: {how}, {len(found)} ways, {numbers:,} results"
    narrow = Accuracy(worst["exp"], worst["log"], _LARGEST_LOG, stride == 1, source)
    sample = _sampled(where, max(_FEWEST, _SAMPLE // stride))
    seen = max(s.ulps for s in sample)
    if seen > DOCUMENTED.exp_ulps:
        raise FperrError(
            f"float64's exp or log is off by {seen:.3g} ulp, more than the documented 1.0"
        )
    many = sum(s.numbers for s in sample)
    note = f"documented: at most 1.0 ulp; {seen:.2g} in a sample of {many:,}"
    return {"float32": narrow, "float64": replace(DOCUMENTED, source=note)}, found + sample


def _sampled(device: torch.device, count: int) -> list[Swept]:
    """Float64's exp, through log_softmax's backward kernel, and log, against pairs of float64."""
    A = DoubleWordArithmetic(device=device)
    found = []
    for path, function, low, high in (
        ("exp", _backward(_ROW), -700.0, 0.0),
        ("exp", _backward(_TAIL), -1.0, 0.0),
        ("log", torch.log, 1.0, _LARGEST_LOG),
    ):
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64).to(device)
        x = low + (high - low) * uniform
        true = getattr(A, path)(A.from_torch(x))
        apart = ((function(x) - true.high[0]) - true.low[0]).abs()
        ulps = torch.ldexp(apart, 53 - torch.frexp(true.high[0]).exponent)
        at = int(ulps.argmax())
        found.append(Swept(path, "float64, a sample", count, float(ulps[at]), float(x[at])))
    return found


def _bits(x: float) -> int:
    return int(torch.tensor(x, dtype=torch.float32).view(torch.int32))


def _floats(first: int, last: int, stride: int, device: torch.device) -> Iterator[Tensor]:
    for start in range(first, last + 1, _CHUNK * stride):
        stop = min(last + 1, start + _CHUNK * stride)
        yield torch.arange(start, stop, stride, dtype=torch.int32, device=device).view(
            torch.float32
        )


def _swept(
    path: str, way: str, function: Function, arguments: Iterator[Tensor], true: Function
) -> Swept:
    numbers, worst, at = 0, 0.0, math.nan
    for x in arguments:
        exact = true(x.to(torch.float64))
        exponent = (torch.frexp(exact).exponent - 24).clamp_min(-149)
        apart = torch.ldexp((function(x).to(torch.float64) - exact).abs(), -exponent)
        numbers += len(x)
        largest = apart.max()
        if not largest <= worst:
            worst, at = float(largest), float(x[apart.argmax()])
    return Swept(path, way, numbers, worst + _OF_FLOAT64, at)


def _check_near_zero(way: str, function: Function, arguments: Iterator[Tensor]) -> None:
    """Down to -2^-26 the nearest float32 to e^x is 1, and nothing may exceed it."""
    for x in arguments:
        found = function(x)
        if bool((found != 1).any()):
            worst = int((found - 1).abs().argmax())
            raise FperrError(
                f"exp ({way}) gives {float(found[worst])!r} at {float(x[worst])!r}: expected 1, "
                "which the bounds take for granted"
            )


def _contiguous(f: Function) -> Function:
    return f


def _strided(f: Function) -> Function:
    def run(x: Tensor) -> Tensor:
        wide = torch.empty(len(x), 2, dtype=x.dtype, device=x.device)
        wide[:, 0] = x
        return f(wide[:, 0])

    return run


def _backward(length: int) -> Function:
    """exp as log_softmax's backward kernel computes it: 0 - exp(output) * (-1)."""

    def run(x: Tensor) -> Tensor:
        inside = length - 1
        rows = -(-len(x) // inside)
        padded = torch.cat([x, x.new_zeros(rows * inside - len(x))]).reshape(rows, inside)
        output = torch.cat([x.new_zeros(rows, 1), padded], 1)
        upstream = torch.zeros_like(output)
        upstream[:, 0] = -1.0
        back = torch.ops.aten._log_softmax_backward_data(upstream, output, 1, x.dtype)
        found: Tensor = back[:, 1:].reshape(-1)[: len(x)]
        return found

    return run


def _forward_exp(x: Tensor) -> Tensor:
    """exp as log_softmax's forward kernel must have computed it, judged by its sums 1 + e^x.

    Where the sum is that of the backward kernel's exp, it is taken to be that; elsewhere it is
    what the sum leaves of it.
    """
    rows = torch.stack([torch.zeros_like(x), x], 1)
    S = torch.ops.aten._log_softmax(rows, 1, False)[:, 0].to(torch.float64).neg().exp()
    S = S.to(torch.float32)  # log S has more digits than S needs
    back = _backward(_ROW)(x)
    return torch.where(1 + back == S, back, S - 1)


def _strided_backward(x: Tensor) -> Tensor:
    """exp as the kernel for another dimension than the last computes it."""
    columns = -(-len(x) // _INNER)
    padded = torch.cat([x, x.new_zeros(columns * _INNER - len(x))]).reshape(1, columns, _INNER)
    output = torch.cat([torch.zeros_like(padded[:, :1]), padded], 1)
    upstream = torch.zeros_like(output)
    upstream[:, 0] = -1.0
    back = torch.ops.aten._log_softmax_backward_data(upstream, output, 1, x.dtype)
    found: Tensor = back[0, 1:].reshape(-1)[: len(x)]
    return found


def _softmax(x: Tensor) -> Tensor:
    """exp as softmax computes it, where the sum with e^0 is 1 exactly."""
    rows = -(-len(x) // _TAIL)
    padded = torch.cat([x, x.new_full((rows * _TAIL - len(x),), -100.0)]).reshape(rows, _TAIL)
    whole = torch.cat([x.new_zeros(rows, 1), padded], 1)
    found: Tensor = torch.softmax(whole, 1)[:, 1:].reshape(-1)[: len(x)]
    return found


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
    """Log as log_softmax's forward kernel computes it, of sums 1 + e^t in (1, 2]."""

    def run(S: Tensor) -> Tensor:
        rows = torch.full((len(S), length), -200.0, device=S.device)  # e^-200 is 0
        rows[:, 0] = 0.0
        rows[:, 1] = (S.to(torch.float64) - 1).log().clamp_min(-200.0).to(torch.float32)
        found: Tensor = -torch.ops.aten._log_softmax(rows, 1, False)[:, 0]
        return found

    return run


_FORWARD = {"log_softmax forward, vectors": _forward(40), "log_softmax forward, tail": _forward(2)}
