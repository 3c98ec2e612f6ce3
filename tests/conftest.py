import math
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch
from torch import nn

from fperr import data, zoo
from fperr.exact.precision import MOST_BITS, digits_of


@pytest.fixture(autouse=True)
def no_global_state_changes() -> Iterator[None]:
    """Neither mpmath's precision nor torch's default dtype is anybody's to change."""
    before = mpmath.mp.prec, torch.get_default_dtype()
    yield
    assert mpmath.mp.prec == before[0]
    assert torch.get_default_dtype() == before[1]


@pytest.fixture(scope="session", autouse=True)
def no_data_of_the_user(tmp_path_factory) -> Iterator[None]:
    """What the user has fetched is not there: tests see FPERR_DATA, or nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def fperr_data() -> Path:
    """The folder of other people's data and checkpoints."""
    folder = os.environ.get("FPERR_DATA")
    if not folder:
        pytest.skip("needs real checkpoints: set FPERR_DATA to the folder that holds them")
    return Path(folder)


@pytest.fixture(scope="session")
def fashion() -> data.Images:
    return data.fashion_mnist_1000()


@pytest.fixture
def fashion_standard() -> nn.Module:
    return zoo.load("fashion_standard")


class Of(nn.Module):
    """A network made of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` with random parameters and statistics that depend on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.abs_().add_(0.5)
    return model.eval()


def integers(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` with small integer parameters, so that float64 computes it without any rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape, generator=generator))
    return model.eval()


def integer_inputs(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).to(torch.float64)


def normal(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_mlp(inputs: int = 6, classes: int = 4, seed: int = 0) -> nn.Module:
    """Two linear layers: 0.1 s to measure."""
    return seeded(nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, classes)), seed)


def at_most(engine: str, digits: float) -> float:
    """The digits, or those that float64 gives at most: more are refused."""
    most = math.floor(digits_of(MOST_BITS["float64"]))
    return min(digits, most) if engine == "float64" else digits


def slow_except(names: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """Cases for `parametrize`: those that are kept, and the others marked slow."""
    return [n if n in kept else pytest.param(n, marks=pytest.mark.slow) for n in names]
