"""Networks that make tensors as long as their batch: states of cells, repeated weights, numbers."""

import pytest
import torch
from torch import nn

import fperr
from fperr import exact
from tests.conftest import normal


class LastStep(nn.Module):
    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        state = torch.zeros(len(x), 5, dtype=x.dtype)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Neighbours(nn.Module):
    """Picks rows by numbers of samples, made as `arange(len(x))`."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        nearest = x[..., 0].topk(2, dim=1).indices
        return self.head(x[torch.arange(len(x))[:, None], nearest].mean(1))


class ManySums(nn.Module):
    """A position from which many integers follow, each by the last one twice."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        position = x[..., 0].argmax(1)
        for _ in range(60):  # followed anew at every use, it would take 2**60 steps
            position = (position + position) % 3
        return self.head(x[torch.arange(len(x)), position])


NETWORKS = {
    "LSTM": lambda: LastStep(nn.LSTM(4, 5, batch_first=True), 5),
    "LSTM, two layers both ways": lambda: LastStep(
        nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True), 6
    ),
    "GRU cell": Cell,
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv2d(1, 4, 2), nn.InstanceNorm2d(4, affine=True),
        nn.Flatten(), nn.Linear(24, 3),
    ),
    "numbers of samples": Neighbours,
    "sums of positions": ManySums,
}  # fmt: skip


def network(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name]().eval()


# which matrix products a batch of two runs depends on the CPU
@pytest.mark.filterwarnings("ignore:the graph for a batch of 2 differs")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_has_the_gradients_of_its_samples(name):
    model, x, v = network(name), normal(2, 3, 4), normal(2, 3)
    whole = exact.gradient(model, x, v, engine="ball")
    for i in range(2):
        alone = exact.gradient(model, x[i : i + 1], v[i : i + 1], engine="ball")
        # both hold the exact numbers
        allowed = whole.radius[i] + alone.radius[0]
        assert (abs(whole.midpoint[i] - alone.midpoint[0]) <= allowed).all()
    other = abs(whole.midpoint[0] - whole.midpoint[1])
    assert (other > whole.radius[0] + whole.radius[1]).any()  # control: samples differ


@pytest.mark.filterwarnings("ignore:the graph for a batch of 2 differs")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_is_measured_as_its_samples(name):
    options = {
        "losses": ["cw"],
        "formats": ["float32"],
        "progress": False,
        "y": torch.tensor([0, 1]),
    }
    for alone in ({}, {"batch_size": 1}):
        report = fperr.measure(network(name), normal(2, 3, 4), **alone, **options)
        # a few dozen roundings of a well-conditioned network, no derived bound: another sample's
        # gradient differs in the first digits
        assert (report.frame["delta"] < 64 * 2.0**-24).all()
