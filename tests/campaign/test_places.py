"""Where the files of cells lie: folders and URLs; and how cells are cut by a forecast."""

import fsspec
import fsspec.implementations.memory
import pytest

from fperr.campaign.cell_store import BEGUN, PARTS, FolderStore, UrlStore, store_at
from fperr.campaign.cells import plan_of
from fperr.campaign.collect import collect
from fperr.campaign.entry import planned
from fperr.campaign.folder import opened_folder
from fperr.campaign.forecast import SIZES, forecasts, sizes_of
from fperr.campaign.spec import read_spec
from fperr.campaign.status import status_of
from fperr.campaign.view import view_of
from fperr.errors import DamagedFileWarning, StorageError
from tests.makers.campaigns import ROOT, check_equal, make, rows_of, run_here


@pytest.fixture
def url():
    """A place in this process's memory, empty at the beginning and the end."""
    fsspec.filesystem("memory").store.clear()
    yield "memory://campaigns/small"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_stores_keep_what_is_written(tmp_path, url, kind):
    store = store_at(tmp_path / "x" if kind == "folder" else url)
    assert isinstance(store, FolderStore if kind == "folder" else UrlStore)
    assert store.names(PARTS) == []
    store.prepare()
    store.write(PARTS, "a.parquet", b"1")
    store.write(PARTS, "a.parquet", b"22")
    store.mark("a-1")
    assert (store.names(PARTS), store.names(BEGUN)) == (["a.parquet"], ["a-1"])
    assert store.read(PARTS, "a.parquet") == b"22"
    assert store_at(store.location).read(PARTS, "a.parquet") == b"22"  # as a worker opens it
    with pytest.raises(FileNotFoundError):
        store.read(PARTS, "b.parquet")
    store.remove(PARTS, "a.parquet")
    store.remove(PARTS, "a.parquet")
    assert store.names(PARTS) == []


def test_places_that_cannot_be_used_are_told(tmp_path):
    with pytest.raises(ValueError, match="storage nosuch://x cannot be used"):
        store_at("nosuch://x")
    with pytest.raises(StorageError, match="expected a campaign's folder that every worker sees"):
        store_at(tmp_path / "nowhere").mark("a-1")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"parts cannot be made \(Not a directory\)"):
        store_at(tmp_path / "file" / "x").prepare()


class Unreachable(fsspec.implementations.memory.MemoryFileSystem):
    """A file system whose server does not answer; its errors are its own."""

    protocol = "unreachable"

    def ls(self, *_, **__):
        raise RuntimeError("no route to host")

    cat_file = rm_file = pipe_file = ls


def test_a_server_that_does_not_answer_is_no_damage(tmp_path):
    """Finished cells would be computed again."""
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    store = store_at("unreachable://campaigns/small")
    for done, action in {
        "listed": lambda: store.names(PARTS),
        "read": lambda: store.read(PARTS, "a.parquet"),
        "written": lambda: store.write(PARTS, "a.parquet", b"1"),
        "removed": lambda: store.remove(PARTS, "a.parquet"),
    }.items():
        with pytest.raises(StorageError, match=rf"could not be {done} \(RuntimeError: no route to"):
            action()
    folder = tmp_path / PARTS
    folder.touch()  # no folder
    with pytest.raises(StorageError, match=r"parts could not be listed \(Not a directory\): expec"):
        store_at(tmp_path).names(PARTS)
    folder.unlink()  # the remedy
    assert store_at(tmp_path).names(PARTS) == []


def test_a_campaign_at_a_url_is_that_in_a_folder(tmp_path, url):
    here = make(tmp_path / "a")
    run_here(here, tmp_path / "a" / "out")
    there = make(tmp_path / "b", more=f'storage = "{url}"')
    run_here(there, tmp_path / "b" / "out", skipped=1)
    assert status_of(view_of(read_spec(there), tmp_path / "b" / "out")).finished == 5
    run_here(there, tmp_path / "b" / "out")
    assert not (tmp_path / "b" / "out" / PARTS).exists()
    check_equal(
        rows_of(there, tmp_path / "b" / "out"), rows_of(here, tmp_path / "a" / "out")
    )  # fmt: skip
    # a cut file, as a URL may hold after a kill
    system = fsspec.filesystem("memory")
    (first, *_) = sorted(system.ls("/campaigns/small/parts", detail=False))
    system.pipe_file(first, system.cat_file(first)[:100])
    with pytest.warns(DamagedFileWarning):
        assert len(run_here(there, tmp_path / "b" / "out")) == 1


def test_storage_beside_the_spec(tmp_path):
    spec = make(tmp_path, more='storage = "elsewhere"')
    run_here(spec, tmp_path / "out")
    assert len(list((tmp_path / "elsewhere" / PARTS).glob("*.parquet"))) == 6


def test_cells_are_cut_by_a_forecast_once(tmp_path, monkeypatch):
    spec = make(tmp_path, images=40)
    spec.write_text(spec.read_text().replace("batch_size = 4", "cell_seconds = 3"))
    monkeypatch.setattr("fperr.campaign.forecast._seconds_per_image", lambda *_: 0.25)
    content = read_spec(spec)
    with opened_folder(content, tmp_path / "out") as folder:
        plan = planned(content, folder)
    assert {cell.rows[1] - cell.rows[0] for cell in plan.cells.values()} == {10}  # 12 fit, 10 is
    monkeypatch.setattr("fperr.campaign.forecast._seconds_per_image", lambda *_: 100.0)
    with opened_folder(content, tmp_path / "out") as folder:
        assert list(planned(content, folder).cells) == list(plan.cells)  # kept
    assert list(view_of(content, tmp_path / "out").plan.cells) == list(plan.cells)
    sizes = sizes_of(plan_of(content), {})
    assert set(sizes.values()) == {1}  # even one image takes longer than a cell may


def test_the_forecast_counts_all_cells(tmp_path):
    job = '[[jobs]]\njob = "measure"\nlosses = ["ce"]\nformats = ["float32"]\n'
    job += '[[jobs]]\njob = "attack"\nlosses = ["ce"]\nformats = ["float32", "exact"]\nsteps = 2\n'
    plan = plan_of(read_spec(make(tmp_path, jobs=job, of_model="radius = 0.1")))
    there = forecasts(plan)
    assert [f.key for f in there] == ["measure", "attack float32", "attack exact"]
    assert sum(f.cells for f in there) == len(plan.cells) == 9
    assert all(f.images == 4 and f.seconds >= 0 and f.bytes > 0 for f in there)
    assert list(SIZES) == sorted(SIZES)


def test_the_papers_table_runs_on_what_is_at_hand(tmp_path, fperr_data):
    """With two images and steps; what is missing is named, and where it is to be had."""
    text = (ROOT / "docs" / "campaigns" / "papers_table.toml").read_text()
    text = text.replace("images = 10000", "images = 2").replace("images = 2000", "images = 2")
    text = text.replace("images = 1000", "images = 2")
    (tmp_path / "spec.toml").write_text(text.replace("steps = 100", "steps = 2"))
    del fperr_data
    answers = run_here(tmp_path / "spec.toml", tmp_path / "out")
    assert len(answers) == 2 * (7 + 4 * 6)  # losses in float32, and in six formats
    assert all(answer.get("finished") for answer in answers), answers
    view = view_of(read_spec(tmp_path / "spec.toml"), tmp_path / "out")
    assert len(view.plan.absent) == 24
    assert all("To be had: " in why for why in view.plan.absent.values())
    collected = collect(view, tmp_path / "collected")
    lines = collected.leaderboard
    assert len(lines) == 26
    assert lines["worst"].notna().sum() == 2
    # its attacks take other numbers of steps than the figure asks for
    assert any("table1 is not drawn: the campaign holds no" in r for r in collected.remarks)
