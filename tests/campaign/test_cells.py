"""Cells: what their results depend on names them, and nothing else does."""

import shutil

import numpy as np
import pytest
import torch

from fperr.attribution import arms
from fperr.campaign import identities
from fperr.campaign.cells import Plan, plan_of
from fperr.campaign.identities import code_digests
from fperr.campaign.jobs import ATTRIBUTION_LOSSES, EXACT_LOSSES, LADDER_LOSS
from fperr.campaign.spec import read_spec
from fperr.errors import FperrError
from tests.makers.campaigns import make


def cells(spec):
    return list(plan_of(read_spec(spec)).cells)


def changed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_cells_of_a_campaign(tmp_path):
    plan = plan_of(read_spec(make(tmp_path, images=10)))
    assert [cell.rows for cell in plan.cells.values()] == 2 * [(0, 4), (4, 8), (8, 10)]
    assert [cell.arm.options["loss"] for cell in plan.cells.values()] == 3 * ["ce"] + 3 * ["mifpe"]


ON_FEWER = """
[[jobs]]
job = "attack"
losses = ["ce"]
steps = 2
radius = 0.1
images = {first}
[[jobs]]
job = "attack"
losses = ["ce", "mifpe"]
steps = 2
radius = 0.1
{second}
"""


@pytest.mark.parametrize(
    ("first", "second", "of_ce", "of_mifpe"),
    [
        (6, "", [(0, 4), (4, 8), (8, 10)], [(0, 4), (4, 8), (8, 10)]),
        (6, "images = 3", [(0, 4), (4, 6)], [(0, 3)]),
        (3, "images = 6", [(0, 4), (4, 6)], [(0, 4), (4, 6)]),
        (60, "images = 4", [(0, 4), (4, 8), (8, 10)], [(0, 4)]),
    ],
)
def test_jobs_on_fewer_images_share_the_cells_of_the_larger(
    tmp_path, first, second, of_ce, of_mifpe
):
    spec = make(tmp_path, images=10, jobs=ON_FEWER.format(first=first, second=second))
    rows = {"ce": [], "mifpe": []}
    for cell in plan_of(read_spec(spec)).cells.values():
        rows[cell.arm.options["loss"]].append(cell.rows)
    assert rows == {"ce": of_ce, "mifpe": of_mifpe}


def test_a_job_for_some_models(tmp_path):
    jobs = '[[jobs]]\njob = "attack"\nlosses = ["ce"]\nradius = 0.1\nmodels = ["second"]\n'
    jobs += '[[jobs]]\njob = "measure"\nimages = 4\n'
    spec = make(tmp_path, images=8, jobs=jobs)
    table = spec.read_text().partition("[[models]]")[2].partition("[[jobs]]")[0]
    spec.write_text(
        spec.read_text().replace("[[jobs]]", f'[[models]]{table}name = "second"\n[[jobs]]', 1)
    )
    plan = plan_of(read_spec(spec))
    kinds = {
        m.spec.name: [c.arm.kind for c in Plan(plan.spec, (m,), {}, {}).cells.values()]
        for m in plan.models
    }
    assert kinds == {"build": ["measure"], "second": ["attack", "attack", "measure"]}


def test_names_and_places_do_not_matter(tmp_path):
    before = cells(make(tmp_path / "one"))
    shutil.move(tmp_path / "one", tmp_path / "two")
    spec = tmp_path / "two" / "spec.toml"
    assert cells(spec) == before
    changed(spec, 'name = "small"', 'name = "other"')
    changed(spec, 'source = "net.py', 'name = "another"\nsource = "net.py')
    assert cells(spec) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("spec.toml", "radius = 0.1", "radius = 0.2"),
        ("spec.toml", "steps = 2", "steps = 3"),
        ("spec.toml", "steps = 2", "steps = 2\nseed = 1"),
        ("spec.toml", "batch_size = 4", "batch_size = 4\nthreads = 2"),
        ("net.py", "manual_seed(3)", "manual_seed(4)"),
    ],
)
def test_what_matters_makes_other_cells(tmp_path, file, old, new):
    spec = make(tmp_path)
    before = cells(spec)
    changed(tmp_path / file, old, new)
    after = cells(spec)
    assert len(after) == len(before)
    assert set(after).isdisjoint(before)


def test_a_changed_image_makes_its_own_cells_others(tmp_path):
    spec = make(tmp_path)
    before = cells(spec)
    arrays = dict(np.load(tmp_path / "images.npz"))
    arrays["x"][5, 3] += 0.01
    np.savez(tmp_path / "images.npz", **arrays)
    after = cells(spec)
    assert [a == b for a, b in zip(after, before, strict=True)] == 2 * [True, False, True]


def test_a_checkpoint_belongs_to_the_cell(tmp_path):
    spec = make(tmp_path, of_model='checkpoint = "w.pt"')
    with pytest.raises(
        FperrError, match=r"(?s)1 of 1 models cannot be had: .* build: .*w.pt is miss"
    ):
        cells(spec)
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pt")
    before = cells(spec)
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    assert set(cells(spec)).isdisjoint(before)


@pytest.mark.parametrize("name", ["fperr", "torch"])
def test_versions_belong_to_the_cell(tmp_path, monkeypatch, name):
    spec = make(tmp_path)
    before = cells(spec)
    there = identities.versions() | {name: "0.0.1"}
    monkeypatch.setattr("fperr.campaign.cells.versions", lambda: there)
    assert set(cells(spec)).isdisjoint(before)


def test_code_is_what_a_module_imports_from_its_folder(tmp_path):
    (tmp_path / "net.py").write_text("import torch, part\nfrom pack import inner\n")
    (tmp_path / "part.py").write_text("x = 1\n")
    (tmp_path / "unused.py").write_text("x = 1\n")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "inner.py").write_text("raise SystemExit('it was run')\n")
    found = code_digests(tmp_path / "net.py")
    assert sorted(found) == ["net.py", "pack/__init__.py", "pack/inner.py", "part.py"]
    (tmp_path / "part.py").write_text("x = 2\n")
    again = code_digests(tmp_path / "net.py")
    assert [name for name in found if found[name] != again[name]] == ["part.py"]


def test_the_attribution_shares_its_cells_with_attacks(tmp_path):
    attack = '[[jobs]]\njob = "attack"\nlosses = ["ce", "mifpe"]\nsteps = 2\nradius = 0.1\n'
    other = '[[jobs]]\njob = "attribute"\nexact = "none"\nstarts = 1\nsteps = 2\nradius = 0.1\n'
    alone, both = (
        cells(make(tmp_path / "a", jobs=other)),
        cells(make(tmp_path / "b", jobs=attack + other)),
    )
    assert len(alone) == 5 * 3
    assert set(both) == set(alone)


def test_the_arms_are_those_of_attribute():
    assert tuple(arm.loss for arm in arms.IN_FORMAT) == ATTRIBUTION_LOSSES
    assert tuple(arm.loss for arm in arms.EXACT) == EXACT_LOSSES
    assert all(arm.name == f"exact_{arm.loss}" for arm in arms.EXACT)
    assert all(arm.name == arm.loss for arm in (*arms.IN_FORMAT, arms.UNLIMITED_CE))
    assert arms.UNLIMITED_CE.loss == LADDER_LOSS


def test_missing_models_are_skipped_where_the_spec_says_so(tmp_path):
    second = '[[models]]\nsource = "gone.py:build"\ndata = "images.npz"\nwhere = "its authors"\n'
    spec = make(tmp_path)
    spec.write_text(spec.read_text().replace("[[jobs]]", second + "name = 'gone'\n[[jobs]]"))
    with pytest.raises(
        FperrError, match=r"(?s)1 of 2 models cannot be had: .* gone: .*To be had: its"
    ):
        cells(spec)
    spec.write_text('missing = "skip"\n' + spec.read_text())
    plan = plan_of(read_spec(spec))
    assert list(plan.absent) == ["gone"]
    assert len(plan.cells) == 6
