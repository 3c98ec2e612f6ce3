"""What a measurement would compute, how long it would take and how large it would get."""

import inspect
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fperr.formats import BFLOAT16, FLOAT16
from fperr.measurement.arguments import Job, checked_job
from fperr.measurement.lab import Lab, measure

# An mpf: the object, its tuple, exponent, bit count, mantissa, and its place in an array; and once
# more the mantissa, aligned, for products. Python's and gmpy2's own sizes, at up to 512 bits.
_BYTES_PER_NUMBER = 400


@dataclass(frozen=True, slots=True)
class Estimate:
    """A forecast.

    Attributes:
        name: the network.
        samples, rows: how many there will be.
        classes: K.
        networks: exact networks to be held: the model's own and one for each narrower format.
        seconds: of computing, from one forward run and one pullback; within a factor of 2 or so.
        bytes: largest memory of the exact side, from the sizes of its arrays.
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


def estimate(model: nn.Module, x: Tensor, y: Any = None, **options: Any) -> Estimate:
    """Forecast `fperr.measure(model, x, y, **options)`, from a short calibration on one sample.

    Everything is checked as `measure` would check it, and raises as it would.
    """
    request = inspect.signature(measure).bind(model, x, y, **options)
    request.apply_defaults()
    arguments = dict(request.arguments)
    del arguments["progress"]
    job = checked_job(**arguments)
    started = time.perf_counter()
    lab = Lab(job)
    setup = time.perf_counter() - started
    forward, pullback = _calibrate(lab, job)
    narrow = sum(f in (FLOAT16, BFLOAT16) for f in job.formats)
    if job.autocast:
        narrow = 0
    # Jacobians: the exact one; in a half format, one of the cast network and one of its run
    jacobians = 1 + 2 * narrow
    scenarios = 1 if job.scenarios is None else len(job.scenarios)
    independent = 1 if job.scenarios is None else len({s.label_leads for s in job.scenarios})
    rows = scenarios * len(job.losses) * len(job.formats)
    # five products of K rows for each independent row; the check at twice the precision
    products = 5 * independent * len(job.losses) * len(job.formats) * _product_seconds(lab, job)
    per_sample = forward * (2.5 + narrow) + pullback * (job.classes * jacobians + 3) + products
    return Estimate(
        job.name,
        len(job.x),
        len(job.x) * rows,
        job.classes,
        1 + narrow,
        setup + per_sample * len(job.x),
        _numbers(lab, job, narrow) * _BYTES_PER_NUMBER,
    )


def _calibrate(lab: Lab, job: Job) -> tuple[float, float]:
    """Seconds of one exact forward run and of one pullback, of the first finite sample."""
    finite = job.x.flatten(1).isfinite().all(1).nonzero()
    first = int(finite[0]) if len(finite) else 0
    started = time.perf_counter()
    sample = lab.reference.sample(job.x[first : first + 1])
    forward = time.perf_counter() - started
    if sample is None:
        return forward, 0.0
    interpreter = sample.state.interpreter
    v = interpreter.arithmetic.from_torch(torch.ones(1, job.classes))
    interpreter.products(sample.state.readings, v)  # prepares the weights
    started = time.perf_counter()
    interpreter.products(sample.state.readings, v)
    return forward, time.perf_counter() - started


def _product_seconds(lab: Lab, job: Job) -> float:
    """Seconds of one product of a logit gradient with the K rows of a Jacobian."""
    A = lab.reference.vectors
    entries = int(np.prod(job.x.shape[1:]))
    chosen = min(entries, 500)
    rows = A.from_torch(torch.ones(job.classes, chosen) / 3)
    v = A.from_torch(torch.ones(1, job.classes) / 3)
    started = time.perf_counter()
    A.matmul(v, rows)
    return (time.perf_counter() - started) * entries / chosen


def _numbers(lab: Lab, job: Job, narrow: int) -> float:
    """How many exact numbers are held at once."""
    capture = lab.reference.capture
    weights = sum(t.numel() for t in capture.constants().values())
    activations = sum(int(np.prod(shape)) for shape in capture.shapes.values())
    rows = job.classes * int(np.prod(job.x.shape[1:]))
    return weights * (2 + narrow) + 2 * activations + rows * (1 + 2 * narrow)
