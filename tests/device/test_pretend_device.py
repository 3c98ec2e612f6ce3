"""The pretend device refuses what CUDA refuses, counts what makes the host wait, and fills up."""

import pytest
import torch
from torch import nn

from tests.pretend_device import (
    COUNTS,
    DEVICE,
    IS_THERE,
    SECOND,
    Pretend,
    counted,
    swapped_parameters,
)

pytestmark = pytest.mark.skipif(
    not IS_THERE, reason="a process has one accelerator, and here is a card"
)


def on_device(*shape: int) -> torch.Tensor:
    return torch.ones(shape).to(DEVICE)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x == torch.ones(3),
        lambda x: x + torch.zeros(len(x)),  # made on the default device
        lambda x: x.index_select(0, torch.tensor([0])),
        lambda x: x.gather(0, torch.tensor([0])),
        lambda x: x + torch.ones(3).to(SECOND),
    ],
)
def test_two_devices_do_not_mix(operation):
    with pytest.raises(RuntimeError, match="found at least two devices"):
        operation(on_device(3))


def test_what_cuda_takes_is_taken():
    x = on_device(3)
    assert (x[torch.tensor([0, 2])] + torch.tensor(1.0)).tolist() == [2.0, 2.0]
    assert x.to(SECOND).device == SECOND


def test_numpy_and_generators_are_refused():
    x = on_device(3)
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
        x.numpy()
    for draw in (
        lambda: torch.rand(3, device=DEVICE),
        lambda: x.uniform_(generator=torch.Generator()),
        lambda: torch.randn_like(x),
    ):
        with pytest.raises(RuntimeError, match="device type for generator"):
            draw()


@pytest.mark.parametrize(
    ("wait", "count"),
    [
        (lambda x: x + 1, 0),
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.empty(3).copy_(x), 1),
        (lambda x: x[torch.tensor([0])], 0),
    ],
)
def test_what_makes_the_host_wait_is_counted(wait, count):
    x = on_device(3)
    with counted() as counts:
        wait(x)
    assert sum(counts.synchronisations.values()) == count


def test_bytes_are_counted_and_released():
    held = COUNTS.bytes_held
    x = torch.ones(1000)
    with counted() as counts:
        y = x.to(DEVICE)
        y.view(10, 100).cpu()
    assert (counts.bytes_from_cpu, counts.bytes_to_cpu) == (4000, 4000)
    assert COUNTS.bytes_held == held + 4000  # a view holds nothing of its own
    del y
    assert COUNTS.bytes_held == held


def test_its_memory_fills_up_as_cudas_does():
    with counted(most_bytes=3000):
        on_device(500)
        with pytest.raises(torch.OutOfMemoryError, match="pretend out of memory"):
            on_device(1000)
    on_device(1000)


def test_networks_learn_on_it():
    with swapped_parameters():
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval().to(DEVICE)
        half = nn.Linear(3, 4).to(DEVICE).half()
    assert half.weight.dtype == torch.float16
    assert all(isinstance(p, Pretend) for p in model.parameters())
    x = on_device(2, 3).requires_grad_()
    model(x).sum().backward()
    assert x.grad.device == DEVICE
