"""The devices on which the doors are tried: a pretend one, and CUDA where there is a card."""

from collections.abc import Iterator

import pytest
import torch

from tests.pretend_device import DEVICE, IS_THERE, swapped_parameters


@pytest.fixture(params=["pretend", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        yield torch.device("cuda")
        return
    if not IS_THERE:
        pytest.skip("a process has one accelerator, and here is a card")
    with swapped_parameters():
        yield DEVICE


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device_or_cpu(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)
