import errno
import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import warnings

import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save

from fperr import folder_lock, run_folder, storage
from fperr.errors import DamagedFileWarning, StorageError
from fperr.parquet import parquet
from fperr.run_folder import opened


def contents():
    """What fperr writes, by format."""
    frame = pd.DataFrame({"a": range(50), "b": [str(i) for i in range(50)]})
    return {
        "json": json.dumps({"seal": storage.SEAL, "numbers": [1.5, 2.5]}).encode(),
        "parquet": parquet(pa.Table.from_pandas(frame), {"seal": storage.SEAL}),
        "safetensors": save({"x": torch.arange(30.0)}, {"seal": storage.SEAL}),
    }


@pytest.mark.parametrize("kind", ["json", "parquet", "safetensors"])
def test_every_changed_byte_is_noticed(kind):
    content = storage.sealed(contents()[kind])
    assert storage.is_whole(content)  # the control
    for place in range(len(content)):
        for bit in (1, 128):
            changed = bytearray(content)
            changed[place] ^= bit
            assert not storage.is_whole(bytes(changed)), (place, bit)
    for cut in (0, 1, len(content) // 2, len(content) - 1):
        assert not storage.is_whole(content[:cut])
    assert not storage.is_whole(content + b"\0")
    assert not storage.is_whole(content + content)


@pytest.mark.parametrize("content", [b"", b"no seal", 2 * storage.SEAL.encode()])
def test_what_cannot_be_sealed_is_refused(content):
    assert not storage.is_whole(content)
    with pytest.raises(ValueError, match=r"once in what is sealed, got it [02] times"):
        storage.sealed(content)
    assert storage.is_whole(storage.sealed(content.replace(storage.SEAL.encode(), b"") + b" seal "
                                           + storage.SEAL.encode()))  # fmt: skip


def failing(monkeypatch, name, code, after=0):
    """The call after so many of a function of `os` fails, as on a full disk."""
    real, calls = getattr(os, name), []

    def fail(*arguments, **options):
        calls.append(arguments)
        if len(calls) > after:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS])
def test_a_file_that_cannot_be_written_leaves_the_old_one(call, code, monkeypatch, tmp_path):
    path = tmp_path / "file"
    storage.write(path, b"old")
    with monkeypatch.context() as patch:
        failing(patch, call, code)
        with pytest.raises(StorageError, match=rf"{path} could not be written \(3 bytes\): "):
            storage.write(path, b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"
    storage.write(path, b"new")  # the remedy: start the same again
    assert path.read_bytes() == b"new"


def test_a_real_limit_on_sizes_is_said(tmp_path):
    code = """
        import resource, sys
        from pathlib import Path
        from fperr import storage
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        storage.write(Path("small"), bytes(1000))
        try:
            storage.write(Path("large"), bytes(1001))
        except storage.StorageError as fault:
            sys.exit(str(fault))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert "large could not be written (1,001 bytes): File too large" in done.stderr
    assert os.listdir(tmp_path) == ["small"]


def test_links_are_not_followed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        storage.read(path)
    storage.write(path, b"new")
    assert victim.read_bytes() == b"precious"
    assert not path.is_symlink()
    assert storage.read(path) == b"new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder could not be written"):
        storage.write(tmp_path / "folder", b"new")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        storage.read(tmp_path / "pipe")


def test_folders_are_tried_before_there_is_anything_to_lose(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, text in (
        ("file", "is a file: give a folder"),
        ("file/below", "cannot be made"),
        ("dangling", "is a symbolic link to .*nowhere, which is missing: make that folder"),
        ("dangling/below", "cannot be made"),
        ("nul\0", "cannot be made"),
        (300 * "n", r"cannot be made \(File name too long\)"),
    ):
        with pytest.raises(ValueError, match=text):
            storage.prepare(tmp_path / name)
    (tmp_path / "nowhere").mkdir()  # the remedy: a link to a folder is that folder
    storage.prepare(tmp_path / "dangling")
    storage.prepare(tmp_path / "new" / "er")
    assert not any((tmp_path / "new" / "er").iterdir())
    with monkeypatch.context() as patch:
        failing(patch, "fsync", errno.ENOSPC)
        with pytest.raises(StorageError, match="No space left on device"):
            storage.prepare(tmp_path / "full" / "disk")
    assert not (tmp_path / "full").exists()


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".fperr-{process}-0123.partial" for process in (dead.pid, os.getpid())]
    for name in (*names, "mine.partial", ".fperr-x.partial"):
        (tmp_path / name).write_bytes(b"")
    storage.prepare(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([names[1], "mine.partial", ".fperr-x.partial"])


def begun(folder, settings=None, pieces=("0", "1")):
    """A run with pieces."""
    with opened(folder, "run.json") as run:
        run.begin(settings or {"steps": 5})
        for name in pieces:
            run.keep(name, storage.sealed(f"{run.stamp(name)} of {name}".encode()))
    return folder


def read_again(folder, settings=None, pieces=("0", "1")):
    with opened(folder, "run.json") as run:
        run.begin(settings or {"steps": 5})
        return [run.piece(name) for name in pieces]


def test_a_run_goes_on(tmp_path):
    folder = begun(tmp_path / "run")
    assert sorted(os.listdir(folder)) == ["0", "1", "run.json"]
    for name, content in zip(("0", "1"), read_again(folder), strict=True):
        assert content.endswith(f" of {name}".encode())
    with pytest.raises(
        ValueError, match=r"holds another run \(steps 5 there, 6 here\): give anoth"
    ):
        read_again(folder, {"steps": 6})
    assert read_again(tmp_path / "another", {"steps": 6}) == [None, None]  # the remedy
    with opened(folder, "run.json", overwrite=["0", "1"]) as run:
        run.begin({"steps": 6})
    assert os.listdir(folder) == ["run.json"]


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_byte_in_any_file_of_a_run_is_named(seed, tmp_path):
    folder, draw = begun(tmp_path / "run"), random.Random(seed)
    for name in ("0", "1"):
        whole = (folder / name).read_bytes()
        changed = bytearray(whole)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(changed)
        with pytest.warns(DamagedFileWarning, match=f"{folder / name} is damaged, or of another"):
            assert read_again(folder).count(None) == 1
        (folder / name).write_bytes(whole)
    changed = bytearray((folder / "run.json").read_bytes())
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    (folder / "run.json").write_bytes(changed)
    with pytest.raises(ValueError, match=r"run.json is damaged .*: give another folder, or remove"):
        read_again(folder)
    (folder / "run.json").unlink()
    with pytest.raises(ValueError, match="is not empty: it holds something else than this run"):
        read_again(folder)


def test_pieces_of_other_runs_and_other_numbers_are_not_used(tmp_path):
    folder = begun(tmp_path / "run")
    other = begun(tmp_path / "other", {"steps": 6})
    (folder / "0").write_bytes((other / "0").read_bytes())
    with pytest.warns(DamagedFileWarning, match="of another run"):
        assert read_again(folder)[0] is None
    (folder / "0").write_bytes((folder / "1").read_bytes())
    with pytest.warns(DamagedFileWarning, match="of another run"):
        assert read_again(folder)[0] is None
    (folder / "0").unlink()
    (folder / "0").symlink_to(folder / "1")
    with pytest.warns(DamagedFileWarning, match="0 is damaged"):
        assert read_again(folder)[0] is None
    begun(folder, pieces=["0"])
    assert None not in read_again(folder)


def test_what_vanishes_while_a_run_is_at_work_is_noticed(tmp_path):
    for vanish in (
        lambda folder: (folder / "0").unlink(),
        lambda folder: (folder / "1").write_bytes(b"other"),
        lambda folder: (folder / "run.json").unlink(),
    ):
        folder = begun(tmp_path / "run")
        with opened(folder, "run.json") as run:
            run.begin({"steps": 5})
            for name in ("0", "1"):
                run.piece(name)
            run.check()  # the control
            vanish(folder)
            with pytest.raises(StorageError, match="was changed while this run wrote to it"):
                run.check()
        for file in folder.iterdir():
            file.unlink()


def test_one_run_at_a_time(tmp_path):
    folder, order = tmp_path / "run", []
    with opened(folder, "run.json") as run:
        with pytest.raises(StorageError, match=r"another run is at work in .*: wait until it has"):
            begun(folder)

        def wait():
            with opened(folder, "run.json", wait=True):
                order.append("second")

        second = threading.Thread(target=wait)
        second.start()
        second.join(0.2)
        order.append("first")
        run.begin({"steps": 5})
    second.join()
    assert order == ["first", "second"]
    begun(folder)  # the remedy
    assert not (folder / folder_lock.LOCK_FILE).exists()


def test_a_killed_run_leaves_no_lock_and_no_leftovers(tmp_path):
    folder = begun(tmp_path / "run")
    code = """
        import os, sys
        from fperr import storage
        from fperr.run_folder import opened
        replace = os.replace
        with opened(sys.argv[1], "run.json") as run:
            run.begin({"steps": 5})
            os.replace = lambda *_: os.kill(os.getpid(), 9)
            run.keep("1", storage.sealed(run.stamp("1").encode()))
    """
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert len(os.listdir(folder)) == 5  # with a lock that nobody holds, and a temporary file
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert None not in read_again(folder)
    assert sorted(os.listdir(folder)) == ["0", "1", "run.json"]


def test_foreign_folders_are_refused_and_left_as_they_are(tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(
        ValueError, match=r"is not empty: .*\(notes.txt, and no run.json\): give an"
    ):
        begun(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
    (tmp_path / "rows").mkdir()
    with opened(tmp_path, "run.json", overwrite=["rows", "result"]) as run:
        run.begin({"steps": 5})
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "rows", "run.json"]
    leftovers = tmp_path / "leftovers"
    leftovers.mkdir()
    for name in ("attack.json.partial", "0000000.partial", ".fperr-7-ab.partial", ".fperr-lock"):
        (leftovers / name).write_bytes(b"{}")
    begun(leftovers)
    assert sorted(os.listdir(leftovers)) == ["0", "1", "run.json"]
    with pytest.raises(ValueError, match="steps must"), opened(tmp_path / "a" / "b", "run.json"):
        raise ValueError("steps must be ...")
    assert not (tmp_path / "a").exists()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".fperr-lock").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(StorageError, match="fperr-lock cannot be opened for writing"):
        begun(tmp_path / "linked")
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_changed_results_are_named_and_written_again(tmp_path):
    folder = tmp_path / "run"

    def publish():
        with opened(folder, "run.json") as run:
            run.begin({"steps": 5})
            run.publish("page", b"page")
            run.publish("frame", b"frame")

    publish()
    publish()  # the control: nothing is said
    for name in ("page", "frame", "results.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.warns(DamagedFileWarning, match=f"{name} (was changed|is damaged)"):
            publish()
        assert (folder / name).read_bytes() == whole
    (folder / "page").unlink()
    (folder / "page").symlink_to(folder / "run.json")
    before = (folder / "run.json").read_bytes()
    with pytest.warns(DamagedFileWarning, match="page is damaged"):
        publish()
    assert (folder / "run.json").read_bytes() == before
    assert not (folder / "page").is_symlink()


def test_settings_that_differ_are_called_by_their_groups():
    old = {"steps": 5, "model": {"digest": "a"}, "gone": 1, "long": 100 * "x"}
    new = {"steps": 5, "model": {"digest": "b"}, "long": 100 * "y"}
    assert run_folder.differences(old, old) == []
    first, *others = run_folder.differences(old, new)
    assert first == "gone 1 there, absent here"
    assert others[1] == "model digest a there, b here"
    assert len(others[0]) < 150


@pytest.mark.parametrize("name", ["../up", "/abs/net.py:build", "a\0b", "", "ä ö", "..", 300 * "n"])
def test_names_lead_nowhere_else(name, tmp_path):
    found = storage.file_name(name)
    assert (tmp_path / found).parent == tmp_path
    assert found not in ("", ".", "..")
    (tmp_path / found).write_bytes(b"")
