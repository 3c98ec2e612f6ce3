"""A comparison that the backward half leaves undecided takes its numbers with it, and no others.

No network of the tests has one: ReLUs and poolings are decided in the forward half. It is feigned.
"""

import pandas as pd
import pytest
import torch
from torch import nn

import fperr
from fperr import data
from fperr.errors import UndecidedError
from fperr.exact.double_word_network import BatchedNetwork
from fperr.exact.engines.double_word import DoubleWordEngine
from fperr.exact.engines.jacobian import DoubleWordPullbacks
from fperr.exact.engines.vectors import ScaledDoubleWords

IMAGES = data.fashion_mnist_1000().first(3)
# SiLU saves its input, which no format rounds as the exact network has it
torch.manual_seed(0)
MODEL = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.SiLU(), nn.Linear(16, 10)).eval()
STAGES_OF_FORMAT = ["stage_backward", "stage_loss", "stage_forward"]


def measured(jacobian, digits=20):
    return fperr.measure(
        MODEL, IMAGES.x, IMAGES.y, losses=["mifpe"], formats=["float16"],
        engine="double_word", jacobian=jacobian, digits=digits, progress=False,
    ).frame  # fmt: skip


def feign_undecided(monkeypatch, is_affected):
    """Pullbacks say that they are undecided, where the test says so."""
    pullback = BatchedNetwork.pullback

    def feigned(self, saved_values, v):
        gradient, undecided = pullback(self, saved_values, v)
        affected = is_affected(saved_values)
        return gradient, torch.ones_like(undecided) if affected else undecided

    monkeypatch.setattr(BatchedNetwork, "pullback", feigned)


@pytest.mark.parametrize("jacobian", ["rows", "products"])
def test_stages_through_the_values_of_a_format(jacobian, monkeypatch):
    before = measured(jacobian)
    assert before[STAGES_OF_FORMAT].notna().to_numpy().all()
    maps, at_work, of_format = DoubleWordEngine.maps, [], []

    def watched(self, states, saved_values):
        at_work.append(True)
        of_format.extend(saved_values)
        try:
            return maps(self, states, saved_values)
        finally:
            at_work.pop()

    monkeypatch.setattr(DoubleWordEngine, "maps", watched)
    feign_undecided(
        monkeypatch,
        lambda saved: bool(at_work) or any(saved is known for known in of_format),
    )
    after = measured(jacobian)
    assert of_format
    assert after[STAGES_OF_FORMAT].isna().to_numpy().all()
    known = ["delta", "stage_cast", "loss", "sample"]
    pd.testing.assert_frame_equal(after[known], before[known], check_exact=True)


def test_a_product_refuses(monkeypatch):
    """The map itself raises; the negative control is the same product before."""
    network = BatchedNetwork(fperr.exact.capture(MODEL, IMAGES.x[:1]), 106)
    saved = network.forward(IMAGES.x[:1]).run.saved_values
    v = network.arithmetic.from_samples(torch.ones(1, 1, 10, dtype=torch.float64))
    gradient, undecided = network.pullback(saved, v)
    assert gradient.high.isfinite().all()
    assert not undecided.any()
    feign_undecided(monkeypatch, lambda _: True)
    with pytest.raises(UndecidedError, match="a comparison of the backward half"):
        DoubleWordPullbacks(network, saved).product(ScaledDoubleWords(v, 0))
