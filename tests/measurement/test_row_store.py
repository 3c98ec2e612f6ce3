"""`measure(out=)`: rows on disk as they come, and a second run that goes on."""

import errno
import json
import os
import random
import re

import pandas as pd
import pytest

import fperr
from fperr.errors import DamagedFileWarning, FperrError, StorageError
from fperr.measurement.run import MeasurementRun
from fperr.networks.exact_network import ExactNetwork
from tests.conftest import normal, slow_except, tiny_mlp
from tests.test_storage import failing

OPTIONS = {"losses": ["ce", "tmifpe"], "formats": ["float16", "float32"], "scenarios": "all"}


def measured(out=None, n=5, **options):
    given = {"engine": "ball", "batch_size": 2, "progress": False, **OPTIONS, **options}
    return fperr.measure(tiny_mlp(), normal(5, 6)[:n], out=out, **given)


@pytest.fixture(scope="module")
def whole():
    return measured().frame


@pytest.fixture(scope="module")
def report():
    return measured(n=1)


def stopping(monkeypatch, samples, fault):
    """The measurement ends after so many samples."""
    rows = MeasurementRun.rows

    def failing_rows(self, *given):
        for number, sample in enumerate(rows(self, *given)):
            if number == samples:
                raise fault
            yield sample

    monkeypatch.setattr(MeasurementRun, "rows", failing_rows)


def same(frame, other):
    pd.testing.assert_frame_equal(frame, other, check_exact=True)


def test_rows_on_disk_are_those_in_memory(whole, tmp_path):
    same(measured(tmp_path / "new" / "folder").frame, whole)
    files = sorted(os.listdir(tmp_path / "new" / "folder"))
    assert files == [f"{i:07d}.parquet" for i in (0, 2, 4)] + ["measurement.json"]
    part = fperr.Report.from_parquet(tmp_path / "new" / "folder" / files[1])
    same(part.frame, whole[whole["sample"].isin([2, 3])].reset_index(drop=True))


@pytest.mark.parametrize(
    ("samples", "fault"),
    [
        (0, KeyboardInterrupt()),
        (0, MemoryError()),
        (1, MemoryError()),
        (2, KeyboardInterrupt()),
        (3, MemoryError()),
        (4, KeyboardInterrupt()),
    ],
)
def test_a_measurement_goes_on_where_it_stopped(samples, fault, whole, tmp_path, monkeypatch):
    """Twice: the second run stops, too, after fewer samples of the batch than the first."""
    monkeypatch.setattr("fperr.measurement.row_store._WRITING_SHARE", 1e9)  # every sample
    for most in (samples, 1):
        with monkeypatch.context() as patch:
            stopping(patch, most, fault)
            try:
                report = measured(tmp_path)
            except (FperrError, MemoryError) as error:
                report = error.report if isinstance(error, FperrError) else None
        if report is not None and most == samples:
            assert report.frame["sample"].nunique() == samples
            assert report.provenance["Sequential"]["interrupted"] is True
    if samples == 3:  # the second run has finished the batch of two and was stopped after it
        assert sorted(os.listdir(tmp_path))[1] == "0000002-unfinished.parquet"
    report = measured(tmp_path)
    same(report.frame, whole)
    assert report.provenance["Sequential"]["interrupted"] is False
    assert not [name for name in os.listdir(tmp_path) if "unfinished" in name]
    again = measured(tmp_path)
    same(again.frame, whole)
    assert again.provenance["Sequential"]["samples_read_back"] == 5


def test_rows_of_a_batch_that_is_run_again_are_kept_until_then(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 4, KeyboardInterrupt())
        assert measured(tmp_path, batch_size=5).frame["sample"].nunique() == 4
    with monkeypatch.context() as patch:
        stopping(patch, 1, KeyboardInterrupt())
        assert measured(tmp_path, batch_size=5).frame["sample"].nunique() == 4


@pytest.mark.parametrize("engine", ["double_word", "mpmath"])
def test_engines_go_on_with_the_same_bits(engine, tmp_path, monkeypatch):
    alone = measured(engine=engine).frame
    with monkeypatch.context() as patch:
        stopping(patch, 3, MemoryError())
        with pytest.raises(FperrError):
            measured(tmp_path, engine=engine)
    same(measured(tmp_path, engine=engine).frame, alone)


def test_another_engine_is_refused(tmp_path):
    measured(tmp_path, engine="auto")
    with pytest.raises(ValueError, match=r"reference .* there, .* here"):
        measured(tmp_path, engine="ball")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"losses": ["ce"]}, r"losses \['ce', 'tmifpe'\] there, \['ce'\] here"),
        ({"n": 4}, "inputs digest_of_x .* there, .* here; inputs samples 5 there, 4 here"),
        ({"batch_size": 3}, "batch_size 2 there, 3 here"),
        ({"loss_scale": 2.0}, r"loss_scale 1.0 there, 2.0 here"),
        ({"name": "other"}, "network Sequential there, other here"),
        ({"digits": 60}, "digits None there, 60 here"),
    ],
)
def test_other_settings_are_refused(options, text, whole, tmp_path):
    measured(tmp_path)
    with pytest.raises(ValueError, match=f"holds another measurement .*{text}.*give another fol"):
        measured(tmp_path, **options)
    same(measured(tmp_path).frame, whole)


def test_another_network_is_refused(tmp_path):
    measured(tmp_path)
    with pytest.raises(ValueError, match=r"model digest .* there, .* here"):
        fperr.measure(
            tiny_mlp(seed=1), normal(5, 6), out=tmp_path, engine="ball", batch_size=2, **OPTIONS
        )


@pytest.mark.parametrize("seed", slow_except(range(3), (0,)))
def test_a_flipped_byte_in_any_kept_file_is_noticed(seed, whole, tmp_path):
    measured(tmp_path)
    draw = random.Random(seed)
    for name in sorted(os.listdir(tmp_path)):
        content = (tmp_path / name).read_bytes()
        changed = bytearray(content)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        (tmp_path / name).write_bytes(changed)
        if name == "measurement.json":
            with pytest.raises(
                ValueError, match=r"json is damaged .*: give another folder .*, or remove it"
            ):
                measured(tmp_path)
        else:
            with pytest.warns(DamagedFileWarning, match=f"{name} is damaged"):
                same(measured(tmp_path).frame, whole)
    assert len(os.listdir(tmp_path)) == 4
    # the remedy
    same(measured(tmp_path.with_name("another")).frame, whole)


@pytest.mark.parametrize("after", [0, 4, 7, 9])
def test_a_full_disk_loses_nothing_that_was_written(after, whole, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        failing(patch, "fsync", errno.ENOSPC, after)
        with pytest.raises(StorageError, match="No space left on device") as raised:
            measured(folder)
    if after < 4:
        assert not folder.exists() or os.listdir(folder) in ([], ["measurement.json"])
        assert raised.value.report is None or len(raised.value.report.frame)
    else:
        same(raised.value.report.frame, whole[: len(raised.value.report.frame)])
    kept = [name for name in (os.listdir(folder) if folder.exists() else []) if "parquet" in name]
    for name in kept:
        fperr.Report.from_parquet(folder / name)
    same(measured(folder).frame, whole)


def test_two_at_once_end_with_one_result_and_one_refusal(whole, tmp_path, monkeypatch):
    rows, refused = MeasurementRun.rows, []

    def second_in_between(self, *given):
        for sample in rows(self, *given):
            if not refused:
                refused.append("tried")
                with pytest.raises(StorageError, match="another run is at work in"):
                    measured(tmp_path)
            yield sample

    monkeypatch.setattr(MeasurementRun, "rows", second_in_between)
    same(measured(tmp_path).frame, whole)
    assert refused


@pytest.mark.parametrize("name", ["0000000.parquet", "measurement.json"])
def test_what_vanishes_on_the_way_is_noticed(name, whole, tmp_path, monkeypatch):
    rows = MeasurementRun.rows

    def removing(self, *given):
        for number, sample in enumerate(rows(self, *given)):
            if number == 3:
                (tmp_path / name).unlink()
            yield sample

    with monkeypatch.context() as patch:
        patch.setattr(MeasurementRun, "rows", removing)
        with pytest.raises(StorageError, match=f"{name} of it are gone") as raised:
            measured(tmp_path)
    same(raised.value.report.frame, whole)
    if name == "measurement.json":
        for file in tmp_path.iterdir():
            file.unlink()
    same(measured(tmp_path).frame, whole)  # the remedy


def test_wrong_arguments_leave_no_folder(tmp_path):
    for options in ({"losses": ["xent"]}, {"formats": ["fp8"]}, {"digits": 1}, {"losses": "ce"}):
        with pytest.raises((ValueError, TypeError)):
            measured(tmp_path / "a" / "b", **options)
    assert not any(tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match="it holds something else than this measurement"):
        measured(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is a symbolic link to .*, which is missing: make that"):
        measured(tmp_path / "link")


def test_what_the_engines_say_of_several_runs_is_all_said(tmp_path, monkeypatch):
    """They count over the samples of their own run."""
    for most in (2, 5):
        with monkeypatch.context() as patch:
            stopping(patch, most, KeyboardInterrupt())
            text = f"balls for {most} of {most} samples"
            patch.setattr(ExactNetwork, "description", property(lambda _, t=text: t))
            report = measured(tmp_path / "out")
    assert report.provenance["Sequential"]["reference"]["engine"] == (
        "balls for 2 of 2 samples (in a run of 2 samples); "
        "balls for 5 of 5 samples (in a run of 3 samples)"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f, p: (f.drop(columns="delta"), p), r"missing \['delta'\], unknown \[\]"),
        (lambda f, p: (f.assign(extra=1), p), r"unknown \['extra'\]"),
        (lambda f, p: (f[f.columns[::-1]], p), "in another order"),
        (lambda f, p: (f[:0], p), "expected at least one row, got none"),
        (lambda f, p: (f.assign(scenario="won"), p), r"expected a scenario out of .* \['won'\]"),
        (lambda f, p: (f.assign(scenario=pd.NA), p), r"got \['nothing'\]"),
        (lambda f, p: (f.assign(format="fp8"), p), r"expected a format out of .* \['fp8'\]"),
        (lambda f, p: (f.assign(loss="xent"), p), "unknown loss 'xent'"),
        (lambda f, p: (f.assign(network="b"), p), r"expected rows of the networks .* got \['b'\]"),
        (lambda f, p: (f.assign(delta="many"), p), "values of other types"),
        (lambda f, _: (f, {}), "expected rows of the networks"),
        (lambda f, _: (f, []), "expected a provenance by network, got list"),
        (lambda f, _: (f, {"Sequential": 1}), "expected settings.digits in the provenance"),
        (lambda f, p: (f, {n: {**a, "model": {}} for n, a in p.items()}), "expected model.classes"),
        (
            lambda f, p: (f, {n: {**a, "interrupted": "no"} for n, a in p.items()}),
            "expected interrupted in the provenance",
        ),
    ],
)
def test_forged_reports_are_refused(change, text, report, tmp_path):
    """Files with a good digest, of what no measurement has made."""
    frame, provenance = change(report.frame.copy(), json.loads(json.dumps(report.provenance)))
    path = tmp_path / "m.parquet"
    fperr.Report(frame, provenance).to_parquet(path)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} .*{text}.*measure again"):
        fperr.Report.from_parquet(path)


def test_files_that_are_no_reports_are_refused(report, tmp_path):
    path = tmp_path / "m.parquet"
    with pytest.raises(ValueError, match=r"is missing: expected a measurements.parquet"):
        fperr.Report.from_parquet(path)
    for content in (b"", b"PAR1", b"text", b"PAR1" + 100 * b"\0" + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"cannot be read as Parquet .* fperr wrote; it may be"
        ):
            fperr.Report.from_parquet(path)
    report.to_parquet(path)
    whole = path.read_bytes()
    same(fperr.Report.from_parquet(path).frame, report.frame)  # the control
    draw = random.Random(0)
    for _ in range(200):
        changed = bytearray(whole)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"m.parquet"):
            fperr.Report.from_parquet(path)


def test_files_of_version_0_7_are_read_and_their_lack_of_a_digest_is_said(report, tmp_path):
    path = tmp_path / "m.parquet"
    table = fperr.report.file.pa.Table.from_pandas(report.frame, preserve_index=False)
    content = {"schema_version": 6, "provenance": report.provenance}
    path.write_bytes(fperr.report.file.parquet(table, content))
    with pytest.warns(DamagedFileWarning, match="by an older fperr, without a digest"):
        again = fperr.Report.from_parquet(path)
    same(again.frame, report.frame)
    again.to_parquet(path)  # the remedy
    same(fperr.Report.from_parquet(path).frame, report.frame)
