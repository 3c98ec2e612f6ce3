"""Figures as views of collected parts, and the specs that hold what they ask for."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from fperr import data
from fperr.campaign.cells import Plan, plan_of
from fperr.campaign.collect import collect
from fperr.campaign.figure_views import CollectedStudy, _is_that
from fperr.campaign.outcomes import outcomes_of
from fperr.campaign.spec import read_spec
from fperr.campaign.view import view_of
from fperr.figures import FIGURES, Study, Subject, boost, gpu
from tests.makers.campaigns import ROOT, run_here

FIGURE = """\
name = "figure"
batch_size = 250
figures = ["precision"]
[[models]]
source = "fashion_saturated"
images = 3
radius = 0.05
[[jobs]]
job = "attack"
losses = ["ce", "stable_ce", "mifpe", "tmifpe"]
formats = ["float16", "float32", "float64"]
steps = 100
[[jobs]]
job = "attack"
losses = ["ce", "mifpe", "tmifpe"]
formats = ["exact"]
steps = 100
"""


@dataclass(frozen=True)
class Asking(Study):
    """A study that notes what a figure asks for and a spec lacks; its numbers are made up."""

    plan: Plan
    lacking: list

    def arms(self, subject, kind):
        (model,) = (m for m in self.plan.models if m.spec.options["source"] == subject.name)
        arms = self.plan.arms_of(model.spec)
        return [arm for arm in arms if arm.kind == kind and model.size_of(arm) >= subject.n]

    def attack_outcomes(self, subject, model=None, **options):
        arms = self.arms(subject, "attack")
        if model is None and not any(_is_that(arm, options) for arm in arms):
            self.lacking.append((subject.name, options))
        yes = np.ones(subject.n, bool)
        return pd.DataFrame({"success": ~yes, "is_judged": yes, "is_clean_correct": yes})

    def gradient_errors(self, subject, losses, fmt):
        wanted = {
            loss
            for arm in self.arms(subject, "measure")
            if fmt in arm.options["formats"]
            for loss in arm.options["losses"]
        }
        if not set(losses) <= wanted:
            self.lacking.append((subject.name, losses, fmt))
        return pd.DataFrame(
            [
                {"sample": sample, "loss": loss, "delta": 0.5, "step_gain": 0.5}
                for sample in range(subject.n)
                for loss in losses
            ]
        )


def lacking_of(spec, name, folder):
    """What a figure asks for and a spec lacks."""
    plan = plan_of(spec)
    lacking = []
    recipe = FIGURES[name]
    images = {m.spec.options["source"]: len(m.images.x) for m in plan.models}
    subjects = tuple(Subject(n, images[n]) for n in recipe.networks if n in images)
    assert subjects
    recipe.frame(Asking(subjects, folder, plan, lacking))
    return lacking


@pytest.fixture
def one_thread():
    """As many as the cells have: with more, sums are taken in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SPECS = sorted((ROOT / "docs" / "campaigns").glob("*.toml"))
OF_FIGURES = [
    (path, name) for path in SPECS for name in read_spec(path).options["figures"]
]  # fmt: skip


@pytest.mark.parametrize(("path", "name"), OF_FIGURES, ids=lambda value: str(value)[-16:])
def test_the_specs_of_the_pages_hold_what_their_figures_ask_for(
    path, name, tmp_path, monkeypatch, request
):
    if path.name == "papers_table.toml":
        request.getfixturevalue("fperr_data")  # none of its networks is packaged
    monkeypatch.setattr(boost, "LIBRARY", "none")  # AutoAttack is run by the figure itself
    spec = read_spec(path)
    assert lacking_of(spec, name, tmp_path) == []
    fewer = tmp_path / path.name
    fewer.write_text(path.read_text().replace('"mifpe", ', "", 1).replace('"float32", ', "", 1))
    assert lacking_of(read_spec(fewer), name, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_figure_is_a_view_of_the_cells(tmp_path):
    (tmp_path / "spec.toml").write_text(FIGURE)
    run_here(tmp_path / "spec.toml", tmp_path / "out")
    view = view_of(read_spec(tmp_path / "spec.toml"), tmp_path / "out")
    collected = collect(view, tmp_path / "collected")
    assert collected.remarks == ()
    assert (tmp_path / "collected" / "figures" / "precision.png").stat().st_size > 10_000
    subjects = (Subject("fashion_saturated", 3),)
    viewed = FIGURES["precision"].frame(CollectedStudy(subjects, tmp_path / "cache", view))
    alone = FIGURES["precision"].frame(Study(subjects, tmp_path / "cache"))
    assert viewed.equals(alone)
    assert data.digest(subjects[0].images.x) == data.digest(view.plan.models[0].images.x)


GPU = """\
name = "gpu"
batch_size = 3
figures = ["gpu"]
[[models]]
source = "fashion_mlp"
images = 4
radius = 0.05
[[models]]
source = "fashion_standard"
images = 3
radius = 0.015
[[jobs]]
job = "measure"
images = 3
formats = [{formats}]
[[jobs]]
job = "attack"
losses = ["ce", "mifpe", "tmifpe"]
steps = 2
formats = [{formats}]
[[jobs]]
job = "measure"
models = ["fashion_mlp"]
formats = ["float8@tensorwise"]
[[jobs]]
job = "attack"
models = ["fashion_mlp"]
losses = ["ce", "mifpe", "tmifpe"]
steps = 2
formats = ["float8@tensorwise"]
"""


@pytest.mark.usefixtures("one_thread")
def test_gradients_and_refusals_of_a_figure_are_those_of_the_campaign(tmp_path, monkeypatch):
    formats = ("float32", "tf32@cuda", "float8@tensorwise")
    monkeypatch.setattr(gpu, "ARITHMETICS", formats)
    monkeypatch.setattr(gpu, "_MEASURED", 3)
    monkeypatch.setattr(gpu, "STEPS", 2)
    (tmp_path / "spec.toml").write_text(
        GPU.format(formats=", ".join(f'"{name}"' for name in formats[:2]))
    )
    run_here(tmp_path / "spec.toml", tmp_path / "out")
    view = view_of(read_spec(tmp_path / "spec.toml"), tmp_path / "out")
    subjects = (Subject("fashion_mlp", 3), Subject("fashion_standard", 3))
    viewed = gpu.frame(CollectedStudy(subjects, tmp_path / "cache", view))
    alone = gpu.frame(Study(subjects, tmp_path / "cache"))
    pd.testing.assert_frame_equal(viewed, alone, check_exact=True)
    refused = viewed[viewed["refusal"] != ""]
    assert set(refused["network"] + " " + refused["arithmetic"]) == {
        "fashion_standard float8@tensorwise"
    }
    # a report of the first three images of four is whole, and the leaderboard has attacks on all
    collected = collect(view, tmp_path / "collected")
    assert collected.remarks == ()
    assert collected.leaderboard["images"].tolist() == [4, 3]
    (report,) = (o.report for o in [outcomes_of(view, view.plan.models[0])])
    (details,) = report.provenance.values()
    assert not details["interrupted"]
    assert details["settings"]["formats"] == list(formats)  # of both jobs
    assert list(details["emulation"]) == ["tf32@cuda", "float8@tensorwise"]
    assert all(notes["longest sum"] >= 784 for notes in details["emulation"].values())
    assert "The kernels of tf32@cuda and float8@tensorwise are emulated" in report.to_html()
    assert report.frame.groupby("format")["sample"].nunique().to_dict() == {
        "float32": 3, "tf32@cuda": 3, "float8@tensorwise": 4,
    }  # fmt: skip


def test_missing_cells_are_not_called_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ARITHMETICS", ("float32", "float16@cuda"))
    monkeypatch.setattr(gpu, "_MEASURED", 3)
    monkeypatch.setattr(gpu, "STEPS", 2)
    (tmp_path / "spec.toml").write_text(GPU.format(formats='"float32"'))
    run_here(tmp_path / "spec.toml", tmp_path / "out")
    view = view_of(read_spec(tmp_path / "spec.toml"), tmp_path / "out")
    (remark,) = collect(view, tmp_path / "collected").remarks
    assert remark.startswith(
        "The figure gpu is not drawn: the campaign holds no finished measurement of ce, mifpe, "
        "tmifpe in float16@cuda at 3 images of fashion_mlp: add it to the spec"
    )
