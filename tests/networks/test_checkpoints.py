"""Files that hold weights and images: loaded as they are, or refused with what to do."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fperr import data
from fperr.networks import checkpoints, from_file

FLOATS = [
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
OTHERS = [torch.complex64, torch.complex128, torch.bool, torch.int8, torch.int64, torch.uint8]


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(dtype).eval()
    with torch.no_grad():
        model[0].weight.div_(3)  # float32 numbers no more, in float64
        model[0].bias.div_(3)
    return model


def floats_of(weights, dtype):
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}


@pytest.mark.parametrize("model_dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_floats_are_cast_where_no_value_changes(dtype, model_dtype, suffix, tmp_path):
    weights = floats_of(network(torch.float64).state_dict(), dtype)
    file = tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pt" else save_file)(weights, file)
    model = network(model_dtype)
    held = checkpoints.state_dict(file)
    exact = all(
        torch.equal(held[k].double(), held[k].to(v.dtype).double())
        for k, v in model.state_dict().items()
    )
    if not exact:
        with pytest.raises(ValueError, match=r"values of 0\.\w+ are no float\d+ numbers"):
            checkpoints.fill(model, held, file)
        return
    sentence = checkpoints.fill(model, held, file)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.double(), weights[name].double())
    assert (sentence is None) == (dtype == model_dtype)
    if sentence is not None:
        assert "each value exactly" in sentence


def test_both_ends_of_the_casts_are_met():
    """Negative control of the sweep: what is exact and what is not are both in it."""
    weights = network(torch.float64).state_dict()["0.weight"]
    lost = {
        (d, m): checkpoints._number_changed(weights.to(d), m)
        for d in FLOATS
        for m in (torch.float16, torch.float32)
    }
    assert lost[torch.float8_e4m3fn, torch.float32] == 0
    assert lost[torch.float16, torch.float32] == 0
    assert lost[torch.float64, torch.float32] > 0
    assert lost[torch.float32, torch.float16] > 0


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
def test_other_kinds_of_numbers_are_refused(dtype, tmp_path):
    """Also ones and zeros, which a cast would keep: a mask is no weight."""
    weights = network().state_dict()
    weights["0.weight"] = torch.ones(3, 4).to(dtype)
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"for 0\.weight, which is float32 in the model"):
        checkpoints.fill(
            network(), checkpoints.state_dict(tmp_path / "weights.pt"), tmp_path / "weights.pt"
        )


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.ones(3, 4).to_sparse(), "sparse"),
        (torch.ones(3, 4, device="meta"), "no"),
        (torch.ones(3, 4, dtype=torch.complex64), "complex"),
    ],
)
def test_tensors_that_are_none_are_refused(tensor, kind, tmp_path):
    weights = network().state_dict() | {"0.weight": tensor}
    with pytest.raises(ValueError, match=f"holds {kind} values"):
        checkpoints.fill(network(), weights, tmp_path / "weights.pt")


def test_whole_numbers_are_cast_where_they_survive(tmp_path):
    count = "1.num_batches_tracked"
    for value, dtype in ((7, torch.int32), (7, torch.int16)):
        weights = network().state_dict() | {count: torch.tensor(value, dtype=dtype)}
        model = network()
        assert "each value exactly" in checkpoints.fill(model, weights, tmp_path / "w.pt")
        assert model[1].num_batches_tracked == value
    weights = network().state_dict() | {count: torch.tensor(7.0)}
    with pytest.raises(ValueError, match="floating-point values"):
        checkpoints.fill(network(), weights, tmp_path / "w.pt")
    narrow = network()
    narrow[1].num_batches_tracked = torch.tensor(0, dtype=torch.int8)
    weights = network().state_dict() | {count: torch.tensor(300)}
    with pytest.raises(ValueError, match=r"1 of 1 values of 1\.num_batches_tracked are no int8"):
        checkpoints.fill(narrow, weights, tmp_path / "w.pt")


def test_the_remedies_for_a_float64_checkpoint_help(tmp_path):
    """Both: a factory that returns model.double(), and a checkpoint in float32."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Linear(4, 3)\n"
        "def build_double():\n    return build().double()\n"
    )
    model = network(torch.float64)[0]
    file = tmp_path / "weights.pt"
    torch.save(model.state_dict(), file)
    build = f"{tmp_path / 'net.py'}:build"
    with pytest.raises(ValueError, match=r"return model.double\(\) .*; or save it in float32"):
        from_file.load(build, file)
    assert torch.equal(from_file.load(f"{build}_double", file).weight, model.weight)
    torch.save(model.float().state_dict(), file)
    said = []
    assert torch.equal(from_file.load(build, file, said.append).weight, model.weight)
    assert said == []
    from_file.load(f"{build}_double", file, said.append)
    assert len(said) == 1
    assert "2 tensors are cast, float32 as float64" in said[0]


def test_nan_stays_nan_and_is_no_change(tmp_path):
    weights = floats_of(network().state_dict(), torch.float16)
    weights["0.bias"][0] = float("nan")
    model = network()
    checkpoints.fill(model, weights, tmp_path / "w.pt")
    assert model[0].bias[0].isnan()


def test_the_remedies_for_arrays_help(tmp_path):
    """What errors say to do to x and y makes them images."""
    x, y = np.ones((2, 4), np.float32) / 3, np.array([0, 1])
    remedies = {
        r"x.astype\(x.dtype.newbyteorder\('='\)\)": (
            x.astype(">f4"),
            lambda x: x.astype(x.dtype.newbyteorder("=")),
        ),
        r"x.astype\('uint8'\)": (np.ones((2, 4), np.int16), lambda x: x.astype("uint8")),
        r"x.astype\('float64'\)": (x.astype(np.longdouble), lambda x: x.astype("float64")),
        r"x\[None\]": (np.float32(3), lambda x: x[None, None].repeat(2, 0)),
    }
    for text, (bad, remedy) in remedies.items():
        np.savez(tmp_path / "images.npz", x=bad, y=y)
        with pytest.raises(ValueError, match=r"images.npz: x .*" + text):
            data.from_npz(tmp_path / "images.npz")
        np.savez(tmp_path / "images.npz", x=remedy(bad), y=y)
        assert len(data.from_npz(tmp_path / "images.npz").x) == 2


@pytest.mark.parametrize("dtype", ["int8", "uint16", ">i4", "int64", "uint64"])
def test_labels_of_any_integer_type(dtype, tmp_path):
    x = np.ones((2, 4), np.float16)
    np.savez(tmp_path / "images.npz", x=x, y=np.array([0, 1]).astype(dtype))
    images = data.from_npz(tmp_path / "images.npz")
    assert images.y.tolist() == [0, 1]
    assert images.y.dtype == torch.int64
    assert images.x.dtype == torch.float16
