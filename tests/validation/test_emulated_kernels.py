"""The bounds for CUDA's kernels, on emulated log-softmax: random cases, a search, and faults."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fperr.bounds.kernels import KERNELS
from fperr.emulated_kernels import emulated
from fperr.formats import BFLOAT16_CUDA, FLOAT16_CUDA, FLOAT32_CUDA
from fperr.validation import logit_gradients
from fperr.validation.falsification import falsify
from fperr.validation.trial_logits import TrialLogits

EMULATED = {fmt.dtype: fmt for fmt in (FLOAT16_CUDA, BFLOAT16_CUDA, FLOAT32_CUDA)}
HALVES = ("float16", "bfloat16")
CASES = 1500
pytestmark = pytest.mark.slow


def emulated_gradient(cases: TrialLogits) -> Tensor:
    with emulated(EMULATED[cases.z.dtype]):
        return logit_gradients.pytorch_gradient(cases)


@pytest.mark.parametrize("name", [*HALVES, "float32"])
def test_bounds_hold_on_emulated_log_softmax(name):
    frame = falsify([name], CASES, kernel="cuda", computed=emulated_gradient)
    assert frame["is_searched"].any()
    assert 0.5 < frame["ratio"].max() <= 1


@pytest.mark.parametrize("name", HALVES)
def test_a_missing_rounding_in_the_bounds_is_found(name):
    for step in ("store_output", "store_gradient"):
        without = replace(KERNELS["cuda"], **{step: 0.0})
        frame = falsify([name], CASES, kernel=without, computed=emulated_gradient)
        assert frame["ratio"].max() > 1


@pytest.mark.parametrize("name", HALVES)
def test_a_rounding_too_many_is_found(name):
    """The gradient through a second half format, as a kernel that stores twice would have it."""

    def stored_twice(cases: TrialLogits) -> Tensor:
        once = emulated_gradient(cases)
        between = once.float() * (1 + 2.0**-8)  # a factor of a place of bfloat16 too large
        return between.to(once.dtype) if once.dtype == torch.bfloat16 else once.bfloat16().half()

    frame = falsify([name], CASES, kernel="cuda", computed=stored_twice)
    assert frame["ratio"].max() > 1


@pytest.mark.parametrize("name", HALVES)
def test_truncation_in_place_of_rounding_is_found(name):
    def truncated(cases: TrialLogits) -> Tensor:
        v = emulated_gradient(cases)
        wide = replace(cases, z=cases.z.float(), c=cases.c.float())
        exact = logit_gradients.pytorch_gradient(wide)
        towards_zero = torch.nextafter(v, torch.zeros_like(v))
        return torch.where(v.float().abs() > exact.abs(), towards_zero, v)

    frame = falsify([name], CASES, kernel="cuda", computed=truncated)
    assert frame["ratio"].max() > 1
