"""The results of a campaign are those of fperr's own functions, bit for bit."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
import torch

import fperr
from fperr import data, zoo
from fperr.attacks import attack_in_batches
from fperr.campaign import worker
from fperr.campaign.collect import collect, lazy_frame
from fperr.campaign.folder import opened_folder
from fperr.campaign.leaderboard import line_of
from fperr.campaign.outcomes import attributions_of, outcomes_of
from fperr.campaign.spec import read_spec
from fperr.campaign.status import status_of
from fperr.campaign.tasks import task_of
from fperr.campaign.view import view_of
from fperr.errors import DamagedFileWarning, FperrError
from fperr.networks.from_file import load
from tests.makers.campaigns import make, names, run_here

SHARED = """\
name = "shared"
batch_size = 3
[[models]]
source = "fashion_saturated"
images = 7
radius = 0.05
[[jobs]]
job = "attack"
losses = ["ce", "mifpe"]
formats = ["float32", "float16"]
starts = 2
steps = 3
[[jobs]]
job = "attribute"
steps = 3
starts = 2
why = true
search = "restarts"
[[jobs]]
job = "measure"
losses = ["ce", "mifpe"]
formats = ["float32"]
"""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """A finished campaign on a packaged network: its spec and folder."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "spec.toml").write_text(SHARED)
    answers = run_here(folder / "spec.toml", folder / "out")
    assert [a for a in answers if not a.get("finished")] == []
    return folder / "spec.toml", folder / "out"


def of_model(campaign):
    view = view_of(read_spec(campaign[0]), campaign[1])
    return view, outcomes_of(view, view.plan.models[0])


@pytest.fixture(scope="module")
def subject():
    torch.set_num_threads(1)
    return zoo.load("fashion_saturated"), data.fashion_mnist_1000().first(7)


@pytest.mark.parametrize("fmt", ["float32", "float16"])
@pytest.mark.parametrize("start", [0, 1])
def test_attacks_are_those_of_attack_in_batches(campaign, subject, tmp_path, fmt, start):
    _, outcomes = of_model(campaign)
    model, images = subject
    expected = attack_in_batches(
        model, images.x, images.y, tmp_path / "alone", batch_size=3, radius=0.05, loss="ce",
        steps=3, seed=start, format=fmt,
    )  # fmt: skip
    (there,) = (
        a.frame for a in outcomes.attacks
        if (a.arm.options["loss"], a.arm.options["format"], a.arm.options["seed"])
        == ("ce", fmt, start)
    )  # fmt: skip
    pd.testing.assert_frame_equal(there, expected, check_exact=True)


def test_the_attribution_is_that_of_attribute(campaign, subject):
    view, outcomes = of_model(campaign)
    ((_, there),) = attributions_of(outcomes, view.plan.spec.jobs)
    model, images = subject
    expected = fperr.attribute(
        model, images.x, images.y, radius=0.05, steps=3, starts=2, exact="all", why=True,
        search="restarts", batch_size=3, progress=False,
    )  # fmt: skip
    assert there is not None
    pd.testing.assert_frame_equal(there.frame[expected.frame.columns], expected.frame)
    assert there.sentence == expected.sentence
    assert there.kind == expected.kind
    pd.testing.assert_frame_equal(there.summary(), expected.summary())


def test_the_measurement_is_that_of_measure(campaign, subject):
    _, outcomes = of_model(campaign)
    model, images = subject
    expected = fperr.measure(
        model, images.x, images.y, losses=["ce", "mifpe"], formats=["float32"], batch_size=3,
        progress=False, name="fashion_saturated",
    )  # fmt: skip
    there = outcomes.report
    pd.testing.assert_frame_equal(there.frame, expected.frame, check_exact=True)
    provenance, alone = (r.provenance["fashion_saturated"] for r in (there, expected))
    assert provenance["inputs"] == alone["inputs"]
    assert provenance["interrupted"] is False


def test_cells_of_two_jobs_are_run_once(campaign):
    """Cross-entropy and MIFPE in float32 belong to the attack and to the attribution."""
    view, outcomes = of_model(campaign)
    # attack: 2 losses, 2 formats, 2 starts; beside it stable_ce, cw, tmifpe, unlimited, 2 exact
    assert len(outcomes.attacks) == 8 + 2 * 6
    assert len(view.plan.cells) == 3 * (20 + 1)
    assert status_of(view).executions == 3 * 21


def test_what_is_collected(campaign, tmp_path):
    view, outcomes = of_model(campaign)
    collected = collect(view, tmp_path)
    assert collected.rows == {"attack": 20 * 7, "measure": 2 * 7}
    assert collected.missing == 0
    frame = lazy_frame(tmp_path, "attack")
    assert frame.count_rows() == 140
    exact = frame.to_table(filter=(ds.field("format") == "exact") & (ds.field("loss") == "ce"))
    assert len(exact) == 2 * 7
    whole = pd.read_parquet(tmp_path / "attack.parquet")
    assert set(whole["model"]) == {"fashion_saturated"}
    measured = pd.read_parquet(tmp_path / "measure.parquet")
    assert measured["sample"].tolist() == sorted(2 * list(range(7)))
    page = (tmp_path / "models" / "fashion_saturated.html").read_text()
    ((_, attribution),) = attributions_of(outcomes, view.plan.spec.jobs)
    assert attribution.sentence.split(":")[0] in page
    (line,) = collected.leaderboard.to_dict("records")
    robust = ~whole["success"] & whole["is_judged"]
    assert line["worst"] == 100 * robust.groupby(whole["sample"]).all().mean()
    of_ce = robust[(whole["loss"] == "ce") & (whole["format"] == "float32")]
    assert line["ce"] == pytest.approx(100 * of_ce.mean(), rel=2**-50)
    assert line["gradient of ce, float32"].startswith(("do not", "cannot"))
    html, markdown, latex = (
        (tmp_path / f"leaderboard.{kind}").read_text() for kind in ("html", "md", "tex")
    )
    for text in (html, markdown, latex):
        assert f"{line['worst']:.1f}" in text
    assert 'href="models/fashion_saturated.html"' in html
    assert "\\begin{tabular}" in latex


def test_images_that_could_not_be_judged_are_counted_and_have_not_withstood(campaign):
    _, outcomes = of_model(campaign)
    judged = line_of(outcomes, None, [])
    assert "not judged" not in judged
    first = outcomes.attacks[0].frame
    stands = first.index[~first["success"]]
    assert len(stands)
    first.loc[stands, "is_judged"] = False
    line = line_of(outcomes, None, [])
    assert line["not judged"] == len(stands)
    assert line["worst"] == 0 < judged["worst"]


def test_what_is_missing_has_no_rank_and_is_told(tmp_path):
    """Half of a campaign: numbers of an unfinished model would be those of other images."""
    spec, out = make(tmp_path), tmp_path / "out"
    run_here(spec, out, skipped=1)
    view = view_of(read_spec(spec), out)
    collected = collect(view, out / "collected")
    assert collected.missing == 1
    (line,) = collected.leaderboard.to_dict("records")
    assert line["missing"] == "1 of 6 cells"
    assert "worst" not in line
    assert "ce" not in line
    assert any("1 of 6 cells are missing" in remark for remark in collected.remarks)
    assert "1 of 6 cells" in (out / "collected" / "leaderboard.md").read_text()
    run_here(spec, out)  # the remedy
    (line,) = collect(view, out / "collected").leaderboard.to_dict("records")
    assert 0 <= line["worst"] <= 100


DAMAGE = {
    "a flipped byte": lambda content: flipped(content),
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "no part": lambda content: b"PAR1 of somebody else",
}


def flipped(content, place=None):
    changed = bytearray(content)
    changed[len(content) // 2 if place is None else place] ^= 4
    return bytes(changed)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_not_used_and_computed_again(tmp_path, damage):
    spec, out = make(tmp_path), tmp_path / "out"
    run_here(spec, out)
    path = out / "parts" / names(out)[2]
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    with pytest.warns(DamagedFileWarning, match=f"{path.name} is damaged, or of another cell"):
        assert collect(view_of(read_spec(spec), out), out / "c").missing == 1
    with pytest.warns(DamagedFileWarning):
        assert len(run_here(spec, out)) == 1
    assert collect(view_of(read_spec(spec), out), out / "c").missing == 0


def test_any_flipped_bit_of_a_part_is_noticed(tmp_path):
    spec, out = make(tmp_path, images=2), tmp_path / "out"
    run_here(spec, out)
    view = view_of(read_spec(spec), out)
    cell = next(iter(view.plan.cells.values()))
    path = out / "parts" / f"{cell.digest}.parquet"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 50):
        path.write_bytes(flipped(whole, int(place)))
        with pytest.warns(DamagedFileWarning):
            assert view.part(cell) is None
    path.write_bytes(whole)
    assert view.part(cell) is not None


def test_a_foreign_part_is_not_used(tmp_path):
    """A whole part of another cell, under this one's name."""
    spec, out = make(tmp_path), tmp_path / "out"
    run_here(spec, out)
    first, second = (out / "parts" / name for name in names(out)[:2])
    first.write_bytes(second.read_bytes())
    with pytest.warns(DamagedFileWarning, match=first.name):
        assert status_of(view_of(read_spec(spec), out)).finished == 5


def test_parts_of_another_spec_are_counted_and_not_used(tmp_path):
    spec, out = make(tmp_path), tmp_path / "out"
    run_here(spec, out)
    spec.write_text(spec.read_text().replace("steps = 2", "steps = 3"))
    status = status_of(view_of(read_spec(spec), out))
    assert (status.finished, status.foreign) == (0, 6)


def test_a_network_that_differs_each_time_is_told(tmp_path):
    spec, out = make(tmp_path), tmp_path / "out"
    net = tmp_path / "net.py"
    net.write_text(
        net.read_text().replace("manual_seed(3)", "manual_seed(int((HERE / 'seed').read_text()))")
    )
    (tmp_path / "seed").write_text("3")
    run_here(spec, out, skipped=3)
    (tmp_path / "seed").write_text("4")
    worker._held.clear()  # another worker
    run_here(spec, out)
    with pytest.raises(FperrError, match="parts of build were made with 2 different sets of weigh"):
        collect(view_of(read_spec(spec), out), out / "collected")


def test_files_that_change_under_a_run_are_told(tmp_path):
    """What a worker sees is compared with what the campaign saw."""
    spec, out = make(tmp_path), tmp_path / "out"
    content = read_spec(spec)
    with opened_folder(content, out) as folder:
        cell, *_ = view_of(content, out).plan.cells.values()
        task = task_of(cell, folder.store, "x")
    net = tmp_path / "net.py"
    whole = net.read_text()
    net.write_text(whole + "\n# another\n")
    answer = json.loads(worker.execute(task))
    assert "files of" in answer["error"]
    assert "(code): start the same again" in answer["error"]
    net.write_text(whole)
    arrays = dict(np.load(tmp_path / "images.npz"))
    np.savez(tmp_path / "images.npz", x=arrays["x"] * 0.5, y=arrays["y"])
    assert "images 0 to 3 of" in json.loads(worker.execute(task))["error"]
    np.savez(tmp_path / "images.npz", **arrays)
    assert json.loads(worker.execute(task))["finished"]
    assert names(out) == [f"{cell.digest}.parquet"]


def test_a_changed_module_is_read_again_by_a_worker_that_lives_on(tmp_path):
    spec, out = make(tmp_path), tmp_path / "out"
    run_here(spec, out)
    net = tmp_path / "net.py"
    net.write_text(net.read_text().replace("manual_seed(3)", "manual_seed(44)"))
    run_here(spec, out)
    view = view_of(read_spec(spec), out)
    (weights,) = outcomes_of(view, view.plan.models[0]).weights
    model = load(f"{Path(net)}:build")
    assert weights == data.digest(*model.state_dict().values())


def test_a_campaign_that_was_not_begun_is_told(tmp_path):
    spec = make(tmp_path)
    with pytest.raises(ValueError, match="holds no campaign: `fperr campaign run"):
        view_of(read_spec(spec), tmp_path / "nowhere")
    run_here(spec, tmp_path / "out")
    spec.write_text(spec.read_text().replace('"small"', '"other"'))
    with pytest.raises(ValueError, match=r"holds the campaign 'small', and .* is 'other'"):
        view_of(read_spec(spec), tmp_path / "out")


FEWER = """\
name = "fewer"
batch_size = 3
[[models]]
source = "fashion_saturated"
images = 5
radius = 0.05
[[jobs]]
job = "attack"
losses = ["ce"]
steps = 3
[[jobs]]
job = "attribute"
steps = 3
starts = 1
exact = "none"
images = 4
[[jobs]]
job = "measure"
losses = ["ce"]
formats = ["float32"]
images = 2
"""


def test_jobs_on_fewer_images(tmp_path, subject):
    """Their results are those of these images alone, and the leaderboard is of all images."""
    (tmp_path / "spec.toml").write_text(FEWER)
    run_here(tmp_path / "spec.toml", tmp_path / "out")
    view = view_of(read_spec(tmp_path / "spec.toml"), tmp_path / "out")
    outcomes = outcomes_of(view, view.plan.models[0])
    model, images = subject
    ((_, there),) = attributions_of(outcomes, view.plan.spec.jobs)
    expected = fperr.attribute(
        model, images.x[:4], images.y[:4], radius=0.05, steps=3, starts=1, exact="none",
        batch_size=3, progress=False,
    )  # fmt: skip
    pd.testing.assert_frame_equal(there.frame[expected.frame.columns], expected.frame)
    (details,) = outcomes.report.provenance.values()
    assert (details["interrupted"], details["inputs"]["samples"]) == (False, 2)
    assert details["inputs"]["digest_of_x"] == data.digest(images.x[:2])
    collected = collect(view, tmp_path / "collected")
    (line,) = collected.leaderboard.to_dict("records")
    assert line["images"] == 5
    assert {name for name in line if name in ("ce", "stable_ce", "mifpe", "cw")} == {"ce"}
    assert line["worst"] == line["ce"]
    assert line["ce less stable_ce, float32"].endswith(", 4 images")
    assert collected.missing == 0
