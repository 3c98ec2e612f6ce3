"""A forecast of a measurement: its rows, its duration and its memory."""

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from fperr.caller_state import in_neutral_state
from fperr.formats import BFLOAT16, FLOAT16
from fperr.measurement.arguments import MeasureRequest, checked_request
from fperr.measurement.entry import measure
from fperr.measurement.run import MeasurementRun
from fperr.networks.exact_network import NoExactSample

# An mpf: the object, its tuple, exponent, bit count, mantissa, and its pointer in an array; and
# once more the mantissa, aligned, for products. Sizes of Python's and gmpy2's objects, at up to 512
# bits.
_BYTES_PER_NUMBER = {"mpmath": 400, "ball": 400, "double_word": 64, "float64": 24}
_PIECE = 8  # samples


@dataclass(frozen=True, slots=True)
class Estimate:
    """A forecast of a measurement.

    Attributes:
        name: Name of the network.
        samples: Number of samples.
        rows: Number of rows of the report.
        classes: Number of classes K.
        networks: Number of exact networks that are held: the model's own and one for each narrower
            format.
        seconds: Seconds of computing, extrapolated from one forward run and one pullback; within a
            factor of 2 or so.
        bytes: Largest memory of the exact arithmetic in bytes, from the sizes of its arrays.
    """

    name: str
    samples: int
    rows: int
    classes: int
    networks: int
    seconds: float
    bytes: float

    def describe(self) -> str:
        """The forecast in words."""
        minutes = self.seconds / 60
        duration = f"{self.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} minutes"
        return (
            f"{self.name}: {self.samples} samples, {self.classes} classes, {self.rows} rows, "
            f"{self.networks} exact networks; about {duration} and "
            f"{self.bytes / 2**30:.1f} GiB beside PyTorch's own"
        )


@in_neutral_state
def estimate(model: nn.Module, x: Tensor, y: Any = None, **options: Any) -> Estimate:
    """Forecast `fperr.measure(model, x, y, **options)`, from a short calibration on one sample.

    Args:
        model: Model, as for `measure`.
        x: Inputs (n, *shape), as for `measure`.
        y: True labels (n,), as for `measure`.
        options: Options of `measure`.

    Raises:
        TypeError, ValueError, FperrError: as `fperr.measure`, which checks the same arguments.

    Example:
        >>> import torch
        >>> from fperr.measurement import estimate
        >>> x, y = torch.rand(2, 6), torch.tensor([0, 1])
        >>> forecast = estimate(torch.nn.Linear(6, 3).eval(), x, y, engine="ball", losses=["ce"])
        >>> forecast.rows  # 2 samples, 1 loss, 3 formats
        6
    """
    call = inspect.signature(measure).bind(model, x, y, **options)
    call.apply_defaults()
    arguments = dict(call.arguments)
    del arguments["progress"], arguments["out"]
    request = checked_request(**arguments)
    started = time.perf_counter()
    run = MeasurementRun(request)
    setup = time.perf_counter() - started
    # the dearest rung that a format starts at
    needs = sorted({run.request.bits_for(fmt) for fmt in request.formats})
    rung = run.reference.ladder.first(needs[-1])
    state, product, row = _calibrate(run, request, needs)
    narrow = sum(f in (FLOAT16, BFLOAT16) for f in request.formats)
    if request.autocast:
        narrow = 0
    scenarios = 1 if request.scenarios is None else len(request.scenarios)
    labellings = 1 if request.scenarios is None else len({s.label_leads for s in request.scenarios})
    rows = scenarios * len(request.losses) * len(request.formats)
    measured = labellings * len(request.losses) * len(request.formats)
    if request.jacobian == "rows":
        # states with all rows: the exact one; for a half format, its cast network and its own run
        exact = state * (1 + 2 * narrow)
    else:
        # of each row: the exact product, two through the format's run, one of its cast network
        exact = state * (1 + narrow) + product * measured * (3 + narrow / len(request.formats))
    per_sample = exact + measured * row
    return Estimate(
        request.name,
        len(request.x),
        len(request.x) * rows,
        request.classes,
        1 + narrow,
        setup + per_sample * len(request.x),
        _numbers(run, request, narrow) * _BYTES_PER_NUMBER[run.reference.ladder.names[rung]],
    )


def _calibrate(
    run: MeasurementRun, request: MeasureRequest, needs: Sequence[int]
) -> tuple[float, float, float]:
    """Time the exact network at a sample, one more product, and the row of a report beside them.

    Returns:
        Seconds of each of the three.
    """
    finite = request.x.flatten(1).isfinite().all(1).nonzero().flatten()
    pieces = run.reference.pieces(_PIECE)
    inputs = request.x[finite[next(pieces)]] if len(finite) else request.x[:1]
    run.reference.samples(inputs[:1], needs, lambda: None)  # prepares the weights
    started = time.perf_counter()
    ladder = run.reference.samples(inputs, needs, lambda: None)[0]
    state = (time.perf_counter() - started) / len(inputs)
    sample = ladder if isinstance(ladder, NoExactSample) else ladder.first(needs[-1])
    if isinstance(sample, NoExactSample):
        return state, 0.0, 0.0
    A, numbers = sample.vectors, [sample.vectors.context.one] * request.classes
    v, transposed = A.array(numbers), sample.point.map
    transposed.product(v)  # prepares the rows
    started = time.perf_counter()
    g = transposed.product(v)
    product = time.perf_counter() - started
    started = time.perf_counter()
    A.to_scaled(A.sub(g, g))
    difference = time.perf_counter() - started
    by_rows = request.jacobian == "rows"
    # as many as `split`, the metrics and the frozen gradient need
    row = 6 * (difference + (product if by_rows else 0.0))
    return state, 0.0 if by_rows else product, row


def _numbers(run: MeasurementRun, request: MeasureRequest, narrow: int) -> float:
    """The number of exact numbers that are held at once."""
    capture = run.reference.capture
    weights = sum(t.numel() for t in capture.constants().values())
    activations = sum(int(np.prod(shape)) for shape in capture.shapes.values())
    rows = request.classes * int(np.prod(request.x.shape[1:]))
    return weights * (2 + narrow) + 2 * activations + rows * (1 + 2 * narrow)
