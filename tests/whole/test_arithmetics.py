"""The commands in emulated arithmetics, on every network at hand and on two that float8 changes."""

import pytest

import fperr
from fperr import zoo
from tests.makers.commands import run

FORMATS = "float32,float32@cuda,float16@cuda,autocast-bfloat16@cuda"
PACKAGED = [name for name in zoo.REGISTRY if name.startswith("fashion")]
OTHERS = [name for name in zoo.REGISTRY if name not in PACKAGED]
FACTORIES = """
import torch
from torch import nn

def transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.0)
    return nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (14, 56)), nn.Linear(56, 32), layer, nn.Flatten(),
        nn.Linear(14 * 32, 10),
    ).eval()

def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
"""


def measured(folder, network: str, formats: str, *options: str, **environment) -> fperr.Report:
    done = run(
        "measure", network, "--n", "1", "--formats", formats, "--losses", "mifpe",
        "--out", str(folder / "out"), *options,
        **environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = folder.rglob("measurements.parquet")
    return fperr.Report.from_parquet(file)


@pytest.mark.slow
@pytest.mark.parametrize("network", PACKAGED)
def test_every_packaged_network(network, tmp_path):
    check_network(network, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("network", OTHERS)
def test_every_network_of_others(network, tmp_path, fperr_data):
    if not zoo.is_at_hand(network):
        pytest.skip(f"{network} is not at hand: fperr fetch {network}")
    check_network(network, tmp_path, FPERR_DATA=str(fperr_data))


def check_network(network: str, folder, **environment: str) -> None:
    frame = measured(folder, network, FORMATS, **environment).frame
    assert frame["format"].tolist() == FORMATS.split(",")
    assert frame["delta"].notna().all()
    assert frame["value_audit"].eq("confirmed").all()
    delta = frame.set_index("format")["delta"]
    assert delta["float32"] <= delta.drop("float32").min()
    attack = ("attack", network, "--radius", "0.03", "--n", "2", "--steps", "2")
    done = run(*attack, "--format", "float32@cuda", **environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "mlp"])
def test_float8(name, tmp_path):
    (tmp_path / "nets.py").write_text(FACTORIES, encoding="utf-8")
    network = f"{tmp_path / 'nets.py'}:{name}"
    options = "--data", "fashion_mnist_1000"
    formats = f"{FORMATS},float8@tensorwise"
    frame = measured(tmp_path, network, formats, *options).frame
    delta = frame.set_index("format")["delta"]
    assert delta["float32"] < 2.0**-17 < delta["float8@tensorwise"] < 1
    attack = ("attack", network, "--radius", "0.03", "--n", "2", "--steps", "2", *options)
    done = run(*attack, "--format", "float8@tensorwise")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["measure", "attack"])
def test_a_packaged_network_has_no_layer_for_float8(command, tmp_path):
    options = {
        "measure": ("--formats", "float8@tensorwise", "--out", str(tmp_path)),
        "attack": ("--format", "float8@tensorwise", "--radius", "0.1"),
    }[command]
    done = run(command, "fashion_standard", "--n", "1", *options)
    assert done.returncode != 0
    assert "would change no layer" in done.stderr
    assert "bfloat16@cuda" in done.stderr
