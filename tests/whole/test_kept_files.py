"""Files of traces, and what figures keep and draw."""

import json
import os
import random
from dataclasses import replace

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import fperr
from fperr import storage
from fperr.bounds import kernels
from fperr.errors import DamagedFileWarning, StorageError
from fperr.figures import Study, Subject, gallery, make
from fperr.formats import FLOAT32
from fperr.recording.comparison import Comparison
from tests.attacks.test_attacks import uniform
from tests.conftest import tiny_mlp
from tests.recording.test_recording import descent


def traced(out):
    model, x, y = tiny_mlp().eval(), uniform(5, 6), torch.arange(5) % 4
    with fperr.record(model, None, y, out=out, every=2, formats=["float32"]) as trace:
        descent(model, x, y, steps=4)
    return trace


def read_all(trace):
    return trace.steps(), trace.errors(), trace.points()


def test_a_flipped_byte_in_any_file_of_a_trace_is_named(tmp_path):
    trace, draw = traced(tmp_path / "trace"), random.Random(0)
    files = sorted(path for path in trace.folder.rglob("*") if path.is_file())
    assert {path.parent.name for path in files} == {"trace", "steps", "errors", "points"}
    for path in files:
        whole = path.read_bytes()
        for _ in range(8):
            changed = bytearray(whole)
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=rf"{path.name} is damaged.*record again|schema"):
                read_all(trace)
        path.write_bytes(whole)
    last = max(path for path in files if path.parent.name == "steps")
    for table in ("steps", "errors"):  # another part of the trace
        last.write_bytes((trace.folder / table / "000000.parquet").read_bytes())
        if (table, last.name) != ("steps", "000000.parquet"):
            with pytest.raises(ValueError, match=r"is damaged, or of another trace"):
                trace.steps()
    last.unlink()
    with pytest.raises(ValueError, match=r"cannot be read .*: that part of the trace is lost"):
        trace.steps()


def test_a_trace_is_written_before_exact_arithmetic_begins(tmp_path, monkeypatch):
    """A kill in a comparison, which may take minutes, loses that comparison alone."""
    rows, written = Comparison.rows, []

    def looking(self, *given):
        written.append(len(fperr.Trace(tmp_path / "trace").steps(["step"])))
        return rows(self, *given)

    monkeypatch.setattr(Comparison, "rows", looking)
    traced(tmp_path / "trace")
    assert written == [5, 15]


def test_traces_need_a_folder_that_can_be_used(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "leftover").mkdir()
    (tmp_path / "leftover" / "trace.partial").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a symbolic link to .*, which is missing: make"):
        traced(tmp_path / "link")
    (tmp_path / "nowhere").mkdir()
    traced(tmp_path / "link")  # the remedy
    traced(tmp_path / "leftover")
    about = tmp_path / "link" / "trace.json"
    about.write_text('{"schema_version": 1}')
    with pytest.raises(ValueError, match="has schema version 1, this fperr reads 3: record again"):
        fperr.Trace(tmp_path / "link")


def kept(folder, images=4):
    calls = []

    def compute():
        calls.append(1)
        return pd.DataFrame({"a": [1.5, float("nan")], "b": ["x", None]})

    study = Study((Subject("fashion_standard", images),), folder)
    return study.cached("errors", {"steps": [1, 2]}, compute), len(calls)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "link", "folder"])
def test_damaged_frames_of_figures_are_computed_again(damage, tmp_path):
    frame, _ = kept(tmp_path)
    again, calls = kept(tmp_path)
    assert calls == 0  # the control
    pd.testing.assert_frame_equal(again, frame)
    (path,) = tmp_path.iterdir()
    kept(tmp_path / "another", 5)
    (another,) = (tmp_path / "another").iterdir()
    of_another = another.read_bytes()
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(6 if damage in ("flip", "cut") else 1):
        changed = bytearray(content)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        path.unlink()
        if damage == "link":
            (tmp_path / "other").write_bytes(content)
            path.symlink_to(tmp_path / "other")
        elif damage == "folder":
            path.mkdir()
            with (
                pytest.warns(DamagedFileWarning, match="is damaged"),
                pytest.raises(StorageError, match="could not be written"),
            ):
                kept(tmp_path)
            path.rmdir()  # the remedy
            assert kept(tmp_path)[1] == 1
            return
        else:
            cut = content[: draw.randrange(len(content))]
            kinds = {"flip": bytes(changed), "cut": cut, "empty": b"", "foreign": of_another}
            path.write_bytes(kinds[damage])
        with pytest.warns(DamagedFileWarning, match=f"{path} is damaged, or of something else"):
            again, calls = kept(tmp_path)
        assert calls == 1
        pd.testing.assert_frame_equal(again, frame)


def test_a_kill_leaves_no_provenance_beside_another_picture(tmp_path, monkeypatch):
    recipe = gallery.Recipe(lambda _: pd.DataFrame({"a": [1.0]}), lambda _: Figure())
    monkeypatch.setitem(gallery.FIGURES, "theory", recipe)  # the picture itself takes seconds
    out, study = tmp_path / "figures", Study((), tmp_path / "cache")
    make("theory", study, out, "first", ("png", "svg"))
    assert json.loads((out / "theory.json").read_text())["command"] == "first"
    old, write, written = (out / "theory.png").read_bytes(), storage.write, []

    def killed(path, content):
        if path.parent == out and path.suffix in (".png", ".svg", ".json"):
            if len(written) == 1:
                raise KeyboardInterrupt
            written.append(path.name)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(gallery.storage, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            make("theory", study, out, "second", ("png", "svg"))
    assert written == ["theory.png"]
    assert not (out / "theory.json").exists()
    assert len((out / "theory.png").read_bytes()) == len(old)
    make("theory", study, out, "second", ("png", "svg"))
    assert json.loads((out / "theory.json").read_text())["command"] == "second"
    assert sorted(os.listdir(out)) == ["theory.json", "theory.png", "theory.svg"]


def test_a_damaged_certificate_of_kernels_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu = torch.device("cpu")
    accurate = replace(kernels.DOCUMENTED, exp_ulps=0.25)
    file = kernels.keep({"float32": accurate, "float64": accurate}, cpu)
    assert kernels.accuracy(FLOAT32, cpu) == accurate  # the control
    file.write_bytes(file.read_bytes().replace(b"0.25", b"0.05"))
    with pytest.warns(DamagedFileWarning, match="is damaged, or of an older fperr: the documented"):
        assert kernels.accuracy(FLOAT32, cpu) == kernels.DOCUMENTED
    file.unlink()  # the remedy
    assert kernels.accuracy(FLOAT32, cpu) == kernels.DOCUMENTED
