"""The gallery: what is drawn is what the frames hold, and frames are computed once."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from fperr.figures import FIGURES, Study, Subject, accuracy, attacks, make, margins
from fperr.figures.gallery import images_in
from fperr.formats import FLOAT16, FLOAT32, FLOAT64
from fperr.report.style import colours, ordered
from fperr.theory.scaling import largest_t_star
from tests.figures.test_gallery import check_bars
from tests.makers.commands import run


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    names = "fashion_standard", "fashion_saturated"
    return Study(tuple(Subject(n, 8) for n in names), tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def short_attacks(monkeypatch):
    monkeypatch.setattr(accuracy, "STEPS", 3)
    monkeypatch.setattr(attacks, "STEPS", 3)


def test_theory(study):
    frame = FIGURES["theory"].frame(study)
    figure = FIGURES["theory"].draw(frame)
    for column, (_, rows) in enumerate(frame.groupby("case", sort=False)):
        for line, value in ((0, "G"), (1, "delta_sup")):
            axis = figure.axes[2 * line + column]
            for drawn, leads in zip(axis.get_lines(), (True, False), strict=False):
                wanted = rows.loc[rows["label_leads"] == leads, value]
                assert np.array_equal(drawn.get_ydata(), wanted)
        lead = rows[rows["label_leads"]]
        best = float(lead["t_star"].iloc[0])
        # G is largest at t*, to the distance of two points of the grid
        at = float(lead.loc[lead["G"].idxmax(), "t"])
        assert abs(np.log(at / best)) <= np.log(lead["t"].iloc[1] / lead["t"].iloc[0])
        assert best < largest_t_star(1000)
        # beyond success G has no maximum; with two peaks it has a dip all the same
        beyond = rows.loc[~rows["label_leads"], "G"]
        assert beyond.idxmax() == beyond.index[-1]
        assert beyond.is_monotonic_increasing == (column == 0)
        peaks = (lead["G"].diff().gt(0) & lead["G"].diff(-1).gt(0)).sum()
        assert peaks == 1 + column


def test_margins(study):
    frame = FIGURES["margins"].frame(study)
    assert images_in(frame) == {"fashion_standard": 8, "fashion_saturated": 8}
    figure = FIGURES["margins"].draw(frame)
    steps = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) > 2]
    for drawn, (_, rows) in zip(reversed(steps), frame.groupby("network", sort=False), strict=True):
        assert np.allclose(sorted(drawn.get_xdata())[1:], sorted(rows["margin"]), rtol=1e-12)
    found = [round(margins.underflow_margin(f), 1) for f in (FLOAT16, FLOAT32, FLOAT64)]
    assert found == [17.3, 104.0, 745.1]


def test_precision_and_convergence(study):
    frame = FIGURES["precision"].frame(study)
    assert len(frame) == 2 * 4 * 4
    figure = FIGURES["precision"].draw(frame)
    for axis, (_, rows) in zip(figure.axes, frame.groupby("network", sort=False), strict=True):
        share = rows.assign(share=rows["robust"] / rows["n"])
        check_bars(axis, share, "arithmetic", "loss", "share")
        labels = [label.get_text() for label in axis.get_xticklabels()]
        for lines, loss in zip(axis.collections, ordered(rows["loss"]), strict=True):
            for (low, high), label in zip(lines.get_segments(), labels, strict=True):
                row = rows[(rows["loss"] == loss) & (rows["arithmetic"] == label)].iloc[0]
                theirs = binomtest(row["robust"], row["n"]).proportion_ci(method="wilson")
                assert [low[1], high[1]] == pytest.approx([theirs.low, theirs.high], abs=1e-12)
                assert labels[round(low[0])] == label
    exact = frame[frame["arithmetic"] == "exact"].set_index(["network", "loss"])["robust"]
    for subject in study.subjects:  # cross-entropy stands for it: the same function
        stable = attacks.attack_outcomes(study, subject, loss="stable_ce", format="exact")
        assert attacks.robust_counts(stable)["robust"] == exact[subject.name, "stable_ce"]
    by_step = FIGURES["convergence"].frame(study)
    last = by_step[by_step["step"] == by_step["step"].max()]
    for _, row in last[last["loss"].isin(accuracy.LOSSES)].iterrows():
        same = (frame["network"] == row["network"]) & (frame["loss"] == row["loss"])
        same &= frame["arithmetic"] == "float32"
        assert list(frame.loc[same, "robust"]) == [row["robust"]]
    figure = FIGURES["convergence"].draw(by_step)
    for axis, (_, rows) in zip(figure.axes, by_step.groupby("network", sort=False), strict=True):
        palette = colours(ordered(by_step["loss"]))
        drawn = {line.get_color(): tuple(line.get_ydata()) for line in axis.get_lines()}
        wanted = {palette[loss]: tuple(r["robust"] / r["n"]) for loss, r in rows.groupby("loss")}
        assert drawn == wanted


def test_robust_accuracy_by_step_counts_the_start_and_clean_errors(study, monkeypatch):
    """First successes: 0 the clean input, 1 the start, 1 + i after step i, -1 never."""
    found = pd.DataFrame(
        {"first_success_step": [0, 1, 2, 4, -1, -1], "is_judged": [True] * 5 + [False]}
    )
    monkeypatch.setattr(accuracy, "attack_outcomes", lambda *_, **__: found)
    frame = accuracy.convergence_frame(Study(study.subjects[:1], study.cache))
    one = frame[frame["loss"] == "ce"]
    assert list(one["step"]) == [0, 1, 2, 3]
    assert list(one["robust"]) == [3, 2, 2, 1]  # the last one was not judged
    assert set(one["n"]) == {6}


def test_images_that_no_attack_could_judge_are_shown(study, monkeypatch):
    def damaged(*_, **options):
        is_half = options.get("format") == "float16"
        is_judged = [not is_half, True, True, True]
        return pd.DataFrame({"success": [False, False, True, False], "is_judged": is_judged})

    monkeypatch.setattr(accuracy, "attack_outcomes", damaged)
    frame = accuracy.precision_frame(Study(study.subjects[:1], study.cache))
    rows = frame[frame["loss"] == "ce"].set_index("arithmetic")
    assert rows["robust"].to_dict() == {"float16": 2, "float32": 3, "float64": 3, "exact": 3}
    assert rows["unjudged"].to_dict() == {"float16": 1, "float32": 0, "float64": 0, "exact": 0}
    title = accuracy.precision(frame).axes[0].get_title()
    assert title.endswith("4 images\n(up to 1 not judged)")
    sound = accuracy.precision(frame.assign(unjudged=0)).axes[0].get_title()
    assert "judged" not in sound


def test_density(study):
    frame = FIGURES["density"].frame(study)
    figure = FIGURES["density"].draw(frame)
    for axis, (_, rows) in zip(figure.axes, frame.groupby("network", sort=False), strict=True):
        drawn = [line for line in axis.get_lines() if len(line.get_xdata()) > 2]
        found = {line.get_color(): tuple(sorted(line.get_xdata())[1:]) for line in drawn}
        palette = {**colours(["ce", "mifpe"]), "clean": (0.5, 0.5, 0.5)}
        wanted = {
            palette[loss]: tuple(sorted(r["label_margin"])) for loss, r in rows.groupby("loss")
        }
        assert found == wanted


def test_results_are_kept_and_stale_ones_never_drawn(tmp_path):
    study = Study((Subject("fashion_standard", 4),), tmp_path)
    calls = []

    def compute():
        calls.append(1)
        return pd.DataFrame({"a": [len(calls)]})

    def cached(study, settings):
        return int(study.cached("errors", settings, compute)["a"][0])

    assert [cached(study, {}), cached(study, {})] == [1, 1]
    assert cached(study, {"other": 1}) == 2
    assert cached(Study((Subject("fashion_standard", 5),), tmp_path), {}) == 3
    assert cached(Study((Subject("fashion_saturated", 4),), tmp_path), {}) == 4
    assert cached(study, {}) == 1


def test_every_name_has_a_colour_of_its_own():
    others = ["tmifpe:scenario=targeted_successful", "mifpe:T=4", "gama", "unknown"]
    found = colours(["ce", "mifpe", "tmifpe", "stable_ce", "cw", "dlr", *others])
    assert len(set(found.values())) == len(found)
    assert colours(["ce"])["ce"] == found["ce"]
    formats = colours(["float64", "float16"])
    assert sum(formats["float16"]) < sum(formats["float64"])  # from dark to light


def test_files_say_where_they_come_from(study, tmp_path):
    files = make("theory", study, tmp_path, "fperr figures theory", ("png", "svg"))
    assert [f.name for f in files] == ["theory.json", "theory.png", "theory.svg"]
    about = json.loads(files[0].read_text())
    assert about["command"] == "fperr figures theory"
    assert about["networks"]["fashion_standard"]["n"] == 8
    with pytest.raises(ValueError, match="unknown figure 'tables'"):
        make("tables", study, tmp_path, "", ("png",))


def test_the_command_line(tmp_path):
    options = ["--n", "5", "--out", "f", "--cache", "c"]
    done = run("figures", "theory", "margins", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {"theory.png", "theory.json", "margins.png", "margins.json"}
    assert {f.name for f in (tmp_path / "f").iterdir()} == names
    for arguments, text in (
        (["tables"], "unknown figure 'tables'"),
        (["all", "--pictures", "gif"], "pictures must be some of png, svg, pdf"),
        (["margins", "--networks", "resnet"], "unknown network 'resnet'"),
        (["margins", "--n", "0"], "--n must be at least 1"),
        (["theory", "--networks", "fashion_standard"], "leave out --networks"),
        (["theory", "--out", __file__], "is a file"),
        (["margins", "--n", "5", "--full"], "--full and --n exclude each other"),
    ):
        done = run("figures", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert text in done.stderr
