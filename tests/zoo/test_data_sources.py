"""Images in the files and objects in which other people keep them."""

import gzip
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fperr import data
from fperr.errors import MissingDataError
from tests.makers.commands import run


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8)


LABELS = np.array([3, 1, 4, 1, 5, 9])


def check(images, pixels):
    assert torch.equal(images.x, torch.from_numpy(pixels).float() / 255)
    assert images.y.tolist() == LABELS.tolist()


def test_bytes_are_pixels_and_may_have_other_names(pixels, tmp_path):
    np.savez(tmp_path / "mine.npz", images=pixels, labels=LABELS, targets=LABELS[::-1])
    check(data.images_named(str(tmp_path / "mine.npz")), pixels)
    assert data.classes_from_npz(tmp_path / "mine.npz", "targets", 2).tolist() == [9, 5]
    np.savez(tmp_path / "wide.npz", x=pixels.astype(np.int16), y=LABELS)
    with pytest.raises(ValueError, match=r"dtype int16, .* x\.astype\('uint8'\)"):
        data.from_file(tmp_path / "wide.npz")
    # the remedy
    np.savez(tmp_path / "wide.npz", x=pixels.astype(np.int16).astype("uint8"), y=LABELS)
    check(data.from_file(tmp_path / "wide.npz"), pixels)


def test_two_tensors_in_a_file_of_torch(pixels, tmp_path):
    x, y = torch.from_numpy(pixels), torch.from_numpy(LABELS)
    path = tmp_path / "mine.pt"
    for pair in ((x, y), [x.float() / 255, y], {"x": x, "y": y}, {"data": x, "targets": y}):
        torch.save(pair, path)
        check(data.images_named(str(path)), pixels)
    for wrong in (x, (x, y, y), {"x": x}, {"x": x, "y": 3}):
        torch.save(wrong, path)
        with pytest.raises(ValueError, match=r"no two tensors x and y: write it with torch\.save"):
            data.from_file(path)
    torch.save((x.bfloat16(), y), path)
    with pytest.raises(ValueError, match=r"bfloat16: store x\.float\(\)"):
        data.from_file(path)


class Touches:
    def __reduce__(self):
        return print, ("unpickled",)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    torch.save((Touches(), torch.ones(2)), tmp_path / "mine.pt")
    with pytest.raises(ValueError, match=r"cannot be read as tensors alone \(UnpicklingError\)"):
        data.from_file(tmp_path / "mine.pt")
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Touches(), b"labels": [1]}, 2))
    with pytest.raises(ValueError, match=r"builtins\.print is no array|print is no array"):
        data.from_file(tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("labels", [1, 2])
def test_binary_cifar(pixels, labels, tmp_path):
    rows = np.concatenate(
        [np.full((6, labels - 1), 7, np.uint8), LABELS.astype(np.uint8)[:, None],
         pixels.reshape(6, -1)], axis=1,
    )  # fmt: skip
    path = tmp_path / ("test_batch.bin" if labels == 1 else "test.bin")
    path.write_bytes(rows.tobytes())
    check(data.images_named(str(tmp_path)), pixels)
    path.write_bytes(rows.tobytes()[:-1])
    with pytest.raises(ValueError, match=r"bytes, which are no records of 307[34]: it is cut"):
        data.images_named(str(tmp_path))


@pytest.mark.parametrize(("name", "key"), [("test_batch", b"labels"), ("test", b"fine_labels")])
def test_cifar_for_python(pixels, name, key, tmp_path):
    held = {b"data": pixels.reshape(6, -1), key: LABELS.tolist(), b"batch_label": b"testing"}
    # protocol 2, as the authors wrote it
    (tmp_path / name).write_bytes(pickle.dumps(held, protocol=2))
    check(data.from_file(tmp_path), pixels)
    (tmp_path / name).write_bytes(pickle.dumps(held, protocol=2)[:-100])
    with pytest.raises(ValueError, match="is not CIFAR's version for Python"):
        data.from_file(tmp_path)


def test_real_images_come_back(fperr_data, tmp_path):
    known = data.cifar10_test_800()
    whole = (known.x * 255).round().to(torch.uint8).numpy()
    rows = np.concatenate([known.y.numpy().astype(np.uint8)[:, None], whole.reshape(800, -1)], 1)
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes())
    found = data.from_file(tmp_path)
    assert torch.equal(found.x, known.x)
    assert torch.equal(found.y, known.y)
    mnist = data.from_file(fperr_data / "mnist")
    assert torch.equal(mnist.x, data.mnist_test().x)
    assert mnist.name == "mnist_test"


def test_folders_of_nothing_that_is_known(tmp_path):
    with pytest.raises(MissingDataError, match=r"no data set that is known: expected one of test_"):
        data.from_file(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01"))
    with pytest.raises(MissingDataError, match=r"t10k-labels-idx1-ubyte\.gz is missing"):
        data.from_file(tmp_path)
    (tmp_path / "mine.csv").write_text("1")
    with pytest.raises(ValueError, match=r"of no known kind: expected \.npz, \.pt"):
        data.from_file(tmp_path / "mine.csv")
    with pytest.raises(MissingDataError, match=r"none\.pt is missing"):
        data.from_file(tmp_path / "none.pt")


def test_data_sets_and_loaders_of_pytorch(pixels):
    pairs = TensorDataset(torch.from_numpy(pixels), torch.from_numpy(LABELS))
    whole = torch.from_numpy(pixels).float() / 255
    for source in (pairs, DataLoader(pairs, batch_size=4), iter(pairs)):
        found = data.from_dataset(source, 5, "mine")
        assert torch.equal(found.x, whole[:5])
        assert found.y.tolist() == LABELS[:5].tolist()
    assert len(data.from_dataset(pairs, 60).x) == 6  # there are no more


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DataLoader(TensorDataset(torch.ones(2, 1), torch.ones(2)), shuffle=True), "shuffle=False"),
        ([(np.ones(3), 1)], r"a tensor of floating point or uint8, got ndarray: give .*ToTensor"),
        ([(torch.ones(3), 1.5)], "a class, an integer, got float"),
        ([(torch.ones(3), torch.ones(2))], "a class, an integer, got torch.float32 of shape"),
        ([torch.ones(3)], r"must be \(x, y\), got torch.float32 of shape \(3,\)"),
        (
            [(torch.ones(3), 1), (torch.ones(4), 1)],
            r"different shapes or dtypes \(\(3,\), \(4,\)\)",
        ),
        ([], "has no samples"),
    ],
)
def test_data_sets_that_cannot_be_used(source, message):
    with pytest.raises(ValueError, match=message):
        data.from_dataset(source, 2)


MODULE = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()

def test_images():
    x = torch.linspace(0, 1, 32).reshape(8, 1, 2, 2)
    return DataLoader(TensorDataset(x, torch.arange(8) % 3), batch_size=3)

held = TensorDataset(torch.rand(3, 1, 2, 2), torch.arange(3))
"""


def test_a_data_set_of_a_module_on_the_command_line(tmp_path):
    (tmp_path / "net.py").write_text(MODULE)
    options = ["--losses", "ce", "--formats", "float32", "--out", "here"]
    done = run(
        "measure", "net.py:build", "--data", "net.py:test_images", "--n", "5", *options,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5" in done.stdout
    missing = run("measure", "net.py:build", "--data", "net.py:none", *options, cwd=tmp_path)
    assert missing.returncode == 2
    assert "defines no 'none': expected one of" in missing.stderr
