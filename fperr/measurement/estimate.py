"""A forecast of a measurement: its rows, its duration and its memory."""

import copy
import inspect
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fperr.caller_state import in_neutral_state
from fperr.formats import BFLOAT16, FLOAT16
from fperr.measurement.arguments import MeasureRequest, checked_request
from fperr.measurement.entry import measure
from fperr.measurement.run import MeasurementRun

# An mpf: the object, its tuple, exponent, bit count, mantissa, and its pointer in an array; and
# once more the mantissa, aligned, for products. Sizes of Python's and gmpy2's objects, at up to 512
# bits.
_BYTES_PER_NUMBER = {"mpmath": 400, "ball": 400, "double_word": 64, "float64": 24}
_PIECE = 8  # samples that are measured at most, to know how long each takes
_PATIENCE = 4.0  # seconds that they may take


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
        seconds: Seconds of computing, from those of a few samples; others may need balls, or none.
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
    """Forecast `fperr.measure(model, x, y, **options)`, from the time that a few samples take.

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
    first, each = _seconds(run)
    # the dearest rung that a format starts at
    rung = run.reference.ladder.first(max(request.bits_for(fmt) for fmt in request.formats))
    narrow = 0 if request.autocast else sum(f in (FLOAT16, BFLOAT16) for f in request.formats)
    scenarios = 1 if request.scenarios is None else len(request.scenarios)
    rows = scenarios * len(request.losses) * len(request.formats)
    return Estimate(
        request.name,
        len(request.x),
        len(request.x) * rows,
        request.classes,
        1 + narrow,
        setup + first + each * (len(request.x) - 1),
        _numbers(run, request, narrow) * _BYTES_PER_NUMBER[run.reference.ladder.names[rung]],
    )


def _seconds(run: MeasurementRun) -> tuple[float, float]:
    """Measure a sample, which prepares what all need, and then one or a few; their rows are lost.

    Returns:
        Seconds of the first, and of each that follows.
    """
    finite = run.request.x.flatten(1).isfinite().all(1).nonzero().flatten()
    samples = finite if len(finite) else torch.arange(1, device=run.request.x.device)
    first = _seconds_of(run, samples[:1])
    if len(run.request.x) == 1:
        return first, first
    count = min(len(samples), _PIECE, max(1, int(_PATIENCE / first)))
    for fmt in run.formats:
        fmt.network.capture(run.request.x[samples[:count]])
    return first, _seconds_of(run, samples[:count]) / count


def _seconds_of(run: MeasurementRun, samples: Tensor) -> float:
    """The seconds in which a batch of samples is measured."""
    request, few = run.request, copy.copy(run)
    y, targets = (None if t is None else t[samples] for t in (request.y, request.targets))
    few.request = replace(
        request, x=request.x[samples], y=y, targets=targets, batch_size=len(samples)
    )
    started = time.perf_counter()
    for _ in few.rows(lambda: None):
        pass
    return time.perf_counter() - started


def _numbers(run: MeasurementRun, request: MeasureRequest, narrow: int) -> float:
    """The number of exact numbers that are held at once."""
    capture = run.reference.capture
    weights = sum(t.numel() for t in capture.constants().values())
    activations = sum(int(np.prod(shape)) for shape in capture.shapes.values())
    rows = request.classes * int(np.prod(request.x.shape[1:]))
    return weights * (2 + narrow) + 2 * activations + rows * (1 + 2 * narrow)
