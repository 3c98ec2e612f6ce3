"""Real CIFAR-10 images, a certified network and somebody else's ResNet-18, end to end."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import fperr
from fperr import data, exact, zoo
from tests.makers.commands import run


@pytest.fixture(scope="module")
def autoattack_examples():
    """The folder of pyautoattack's examples: a ResNet-18 and its weights."""
    found = importlib.util.find_spec("pyautoattack")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "examples"


@pytest.mark.slow
def test_a_certified_network_with_every_engine(fperr_data):
    model, images = zoo.load("cifar_wong_kolter_small_8px"), data.cifar10_test_800()
    with torch.no_grad():
        accuracy = (model(images.x).argmax(1) == images.y).double().mean()
    assert 0.2 < accuracy < 0.5  # provable defences cost accuracy; chance is 0.1
    few = images.first(3)
    frames = {
        engine: fperr.measure(model, few.x, few.y, engine=engine).frame
        for engine in ("double_word", "ball")
    }
    words, balls = frames.values()
    assert words["is_certified"].all()
    assert (words["certainty"] == "proved").all()
    assert np.isclose(words["delta"], balls["delta"], 1e-10, 0).all()


@pytest.mark.slow
def test_a_resnet_of_others_from_the_command_line(fperr_data, autoattack_examples, tmp_path):
    images = data.cifar10_test_800().first(2)
    np.savez(tmp_path / "images.npz", x=images.x.numpy(), y=images.y.numpy())
    done = run(
        "measure", f"{autoattack_examples / 'resnet.py'}:ResNet18",
        "--checkpoint", str(autoattack_examples / "model_test.pt"),
        "--data", str(tmp_path / "images.npz"), "--n", "2",
        "--losses", "ce,mifpe", "--formats", "float32", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = fperr.Report.from_parquet(tmp_path / "out" / "measurements.parquet")
    reference = report.provenance["ResNet18"]["reference"]["engine"]
    assert reference.startswith("pairs of float64, 106 bits")
    frame = report.frame
    assert frame["is_certified"].all()
    mifpe = frame[frame["loss"] == "mifpe"]
    # rounding errors of 20 layers in float32; a flip would show above
    assert (mifpe["delta"] < 1e-2).all()
    assert (frame["delta"] > 1e-8).all()


def test_words_meet_the_balls_on_the_certified_network(fperr_data):
    model, x = zoo.load("cifar_wong_kolter_small_8px"), data.cifar10_test_800().x[3:5]
    v = torch.randn(2, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    words = exact.gradient(model, x, v, engine="double_word", digits=22)
    balls = exact.gradient(model, x, v, digits=39, engine="ball")
    assert words.radius is not None
    assert bool((abs(words.midpoint - balls.midpoint) <= words.radius + balls.radius).all())
