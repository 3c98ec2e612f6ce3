import gzip
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fperr import data, zoo
from fperr.errors import MissingDataError
from fperr.zoo.registry import fill_in_order
from fperr.zoo.train import RECIPES, Recipe, describe, train
from tests.conftest import tiny_mlp

PACKAGED = [entry.name for entry in zoo.REGISTRY.values() if entry.checkpoint is None]
OTHERS = [entry.name for entry in zoo.REGISTRY.values() if entry.checkpoint is not None]


def test_packaged_images(fashion):
    assert fashion.x.shape == (1000, 1, 28, 28)
    assert fashion.x.dtype == torch.float32
    assert float(fashion.x.min()) == 0
    assert float(fashion.x.max()) == 1
    assert fashion.y.bincount().tolist() == [107, 105, 111, 93, 115, 87, 97, 95, 95, 95]
    assert len(fashion.first(3).x) == 3
    for n in (0, 1001):
        with pytest.raises(ValueError, match="give a number from 1 to 1000"):
            fashion.first(n)


@pytest.mark.skipif(
    not data.FASHION_FOLDER.exists(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_packaged_images_are_the_first_of_the_source(fashion):
    source = data.fashion_mnist("t10k")
    assert torch.equal(source.x[:1000], fashion.x)
    assert torch.equal(source.y[:1000], fashion.y)
    assert len(data.fashion_mnist("train").x) == 60_000


def test_missing_files_name_the_package(tmp_path):
    with pytest.raises(MissingDataError, match="Install Debian's package dataset-fashion-mnist"):
        data.fashion_mnist("train", tmp_path)


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path):
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01" + b"\0" * 9))
    with pytest.raises(ValueError, match="not the published file"):
        data.fashion_mnist("t10k", tmp_path)


def test_archives(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, x=np.zeros((2, 3), np.float32), y=np.array([0, 1]))
    assert data.images_named(str(path)).y.tolist() == [0, 1]
    np.savez(path, x=np.zeros((2, 3), np.int16), y=np.array([0, 1]))
    with pytest.raises(ValueError, match=r"dtype int16, expected floating point"):
        data.images_named(str(path))
    np.savez(path, z=np.zeros(2))
    with pytest.raises(
        ValueError, match=re.escape("expected arrays x and y (or images and labels), got ['z']")
    ):
        data.images_named(str(path))
    with pytest.raises(MissingDataError, match=r"expected a \.npz file with arrays x and y"):
        data.images_named(str(tmp_path / "none.npz"))
    with pytest.raises(ValueError, match="unknown data set 'imagenet': expected one of"):
        data.images_named("imagenet")


def test_digests_tell_tensors_apart():
    x = torch.arange(4.0)
    assert data.digest(x) == data.digest(x.clone())
    assert len({data.digest(t) for t in (x, x + 1e-7, x.double(), x.reshape(2, 2), -x)}) == 5


@pytest.mark.parametrize("name", PACKAGED)
def test_cards_say_what_the_weights_do(name, fashion):
    model, card = zoo.load(name), zoo.card(name)
    assert not model.training
    assert card["name"] == name
    found = describe(model, fashion)
    # 1,000 of the 10,000 images of the card: four standard deviations of the sample's accuracy
    p = card["clean_accuracy_percent"] / 100
    assert abs(found["clean_accuracy_percent"] / 100 - p) < 4 * (p * (1 - p) / 1000) ** 0.5
    assert set(card["margin_quantiles"]) == {"0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"}
    median = card["margin_quantiles"]["0.5"]
    assert found["margin_quantiles"]["0.5"] == pytest.approx(median, rel=0.15)
    assert card["recipe"]["epochs"] == RECIPES[name].epochs


def test_training_is_a_function_of_its_seed(fashion):
    recipe = Recipe("cross_entropy", epochs=1, batch_size=50, peak_learning_rate=3e-3, seed=3)
    state = torch.random.get_rng_state()
    first, second = (train("fashion_standard", fashion, recipe) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert describe(first, fashion)["clean_accuracy_percent"] > 50


def test_weights_are_small_and_safe():
    for name in PACKAGED:
        path = zoo.registry._weights(f"{name}.safetensors")
        assert path.stat().st_size < 1_000_000
        assert load_file(path).keys() == zoo.load(name).state_dict().keys()


def test_a_missing_checkpoint_says_what_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("FPERR_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "usual"))
    usual = tmp_path / "usual" / "fperr" / "checkpoints"
    with pytest.raises(MissingDataError, match=f"{usual}/mnist_fastat_pgd.pth is missing: it sho"):
        zoo.load("mnist_fastat_pgd")
    usual.mkdir(parents=True)
    (usual / "mnist_fastat_pgd.pth").write_bytes(b"other")
    with pytest.raises(ValueError, match="it is not the checkpoint of mnist_fastat_pgd"):
        zoo.load("mnist_fastat_pgd")
    monkeypatch.setenv("FPERR_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match="is missing: it should hold the checkpoint of"):
        zoo.load("mnist_fastat_pgd")
    with pytest.raises(MissingDataError, match="MNIST's test files"):
        data.images_named("mnist_test")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mnist_fastat_pgd.pth").write_bytes(b"other")
    with pytest.raises(ValueError, match="it is not the checkpoint of mnist_fastat_pgd"):
        zoo.load("mnist_fastat_pgd")


def test_names_that_are_not_there():
    with pytest.raises(ValueError, match="unknown network 'resnet': expected one of fashion_stan"):
        zoo.load("resnet")
    with pytest.raises(ValueError, match="is not packaged and has no card"):
        zoo.card("mnist_fastat_pgd")


def test_tensors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the checkpoint's tensors do not fit the network"):
        fill_in_order(tiny_mlp(), [torch.zeros(3)])


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("mnist_levelsets_eps0.4", 98.93),
        ("mnist_levelsets_xent", 98.37),
        ("mnist_fastat_pgd", 98.99),
        ("mnist_wong_kolter", 98.20),
    ],
)
def test_checkpoints_of_others_have_their_accuracy(fperr_data, name, accuracy):
    assert describe(zoo.load(name), data.mnist_test())["clean_accuracy_percent"] == accuracy


@pytest.mark.parametrize("name", OTHERS)
def test_every_entry_loads(fperr_data, name):
    logits = zoo.load(name)(data.images_named(zoo.entry(name).dataset).x[:2])
    assert logits.shape == (2, 10)
