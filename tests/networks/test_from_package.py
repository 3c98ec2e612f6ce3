"""Networks of other packages by name: their own standardisation, weights from a file alone."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from fperr.networks import from_package
from tests.conftest import seeded
from tests.makers.commands import run


def test_a_package_that_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for source, package in (
        ("timm:resnet18", "timm"),
        ("torchvision:resnet18", "torchvision"),
        ("robustbench:cifar10/Linf/Standard", "robustbench"),
    ):
        with pytest.raises(
            ValueError, match=f"{package} is not installed: `pip install {package}`"
        ):
            from_package.load(source, None)


def test_only_known_packages_are_packages():
    assert from_package.is_packaged("timm:resnet18")
    assert not from_package.is_packaged("nets.py:timm")
    assert not from_package.is_packaged("timm")


def test_a_folder_without_a_network_says_how_to_fetch_one(tmp_path):
    with pytest.raises(ValueError, match=r"expected config\.json and model\.safetensors"):
        from_package.load(f"hf:{tmp_path}", None)
    with pytest.raises(ValueError, match="holds its own weights: leave --checkpoint out"):
        from_package.load(f"hf:{tmp_path}", tmp_path / "weights.pt")


def test_names_of_robustbench_have_three_parts():
    with pytest.raises(ValueError, match=r"must be DATASET/THREAT/NAME, e\.g\. cifar10/Linf"):
        from_package.load("robustbench:Standard", None)


def test_options_are_numbers_or_words():
    name, options = from_package._options("vit?img_size=32&global_pool=avg")
    assert (name, options) == ("vit", {"img_size": 32, "global_pool": "avg"})
    with pytest.raises(ValueError, match=r"'32' is no option: expected e\.g\. vit\?num_classes=10"):
        from_package._options("vit?32")


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


def test_a_network_of_timm(timm, tmp_path):
    inner = seeded(timm.create_model("resnet18", num_classes=4)).eval()
    torch.save(inner.state_dict(), tmp_path / "weights.pt")
    found = from_package.load("timm:resnet18?num_classes=4", tmp_path / "weights.pt")
    x = torch.rand(2, 3, 32, 32)
    mean, deviation = (
        torch.tensor(inner.pretrained_cfg[k])[:, None, None] for k in ("mean", "std")
    )
    assert torch.equal(found.model(x), inner((x - mean) / deviation))
    assert not torch.equal(found.model(x), inner(x))  # without its standardisation
    assert "pixels less (0.485, 0.456, 0.406)" in found.described


def test_missing_weights_say_how_to_fetch_them(timm):
    with pytest.raises(ValueError, match=r"fetch them once with `python -c .*pretrained=True"):
        from_package.load("timm:resnet18", None)


def test_names_that_timm_does_not_know_list_others(timm):
    with pytest.raises(
        ValueError, match=r"timm has no network 'resnet1x': expected e\.g\. .*resnet18"
    ):
        from_package.load("timm:resnet1x", None)
    with pytest.raises(ValueError, match=r"timm:resnet18 cannot be built: .*no_such"):
        from_package.load("timm:resnet18?no_such=1", None)


def test_a_network_of_timm_from_the_command_line(timm, tmp_path):
    inner = seeded(timm.create_model("resnet18", num_classes=4)).eval()
    torch.save(inner.state_dict(), tmp_path / "weights.pt")
    x = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    np.savez(tmp_path / "few.npz", x=x, y=np.array([0, 1]))
    done = run(
        "measure", "timm:resnet18?num_classes=4", "--checkpoint", "weights.pt", "--data", "few.npz",
        "--formats", "float32", "--losses", "mifpe", "--n", "2", "--out", "here", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "timm:resnet18, pixels less" in done.stdout


def test_a_folder_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    inner = transformers.ViTForImageClassification(settings).eval()
    inner.save_pretrained(tmp_path)
    kept = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(kept))
    found = from_package.load(f"hf:{tmp_path}", None)
    x = torch.rand(2, 3, 8, 8)
    assert found.logits == "logits"
    assert torch.equal(found.model(x).logits, inner((x - 0.5) / 0.25).logits)
