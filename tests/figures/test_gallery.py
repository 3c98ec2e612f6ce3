"""The gallery, second half: what is measured again, what is drawn, and what tables say."""

import json
import math
import re
from pathlib import Path

import matplotlib.image
import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from fperr import attack, measure
from fperr.errors import ModelError
from fperr.figures import (
    FIGURES,
    Study,
    Subject,
    accuracy,
    attacks,
    boost,
    cost,
    errors,
    gpu,
    layers,
    make,
    paper_size,
    published,
    regimes,
    signs,
    sweep,
    table1,
    tstar,
)
from fperr.figures import study as study_module
from fperr.formats import EMULATED, format_named
from fperr.report.style import STAGES, colours, ordered

NAMES = "fashion_standard", "fashion_saturated"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tuple(Subject(name, 6) for name in NAMES), tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module, name, value in (
        (attacks, "STEPS", 3),
        (accuracy, "STEPS", 3),
        (boost, "STEPS", 3),
        (boost, "_TARGETS", 2),
        (tstar, "STEPS", 3),
        (sweep, "STEPS", 3),
        (sweep, "TEMPERATURES", (0.1, 1.0, 64.0)),
        (sweep, "_MEASURED", 2),
        (errors, "_MEASURED", 4),
        (layers, "_TRACED", 2),
        (tstar, "_COMPARED", 2),
        (tstar, "_EVERY", 2),
        (gpu, "STEPS", 3),
        (gpu, "_MEASURED", 4),
        (gpu, "ARITHMETICS", ("float32", "float32@cuda")),
        (table1, "ARITHMETICS", ("float32", "float32@cuda")),
        (regimes, "_POINTS", 12),
        (regimes, "_DRAWS", 3),
        (cost, "_WIDTHS", (1, 2)),
    ):
        monkeypatch.setattr(module, name, value)


def drawn(name, study):
    frame = FIGURES[name].frame(study)
    return frame, FIGURES[name].draw(frame)


def check_bars(axis, rows, x, hue, value, hues=None):
    """Every bar stands at its name, in its colour, as high as the frame says."""
    hues = ordered(rows[hue]) if hues is None else hues
    table = rows.pivot_table(index=x, columns=hue, values=value, aggfunc="median", sort=False)
    names, palette = [label.get_text() for label in axis.get_xticklabels()], colours(hues)
    for bars, name in zip(axis.containers, hues, strict=True):
        for bar in bars:
            place = names[round(bar.get_x() + bar.get_width() / 2)]
            assert bar.get_height() == pytest.approx(table.loc[place, name], rel=1e-12)
            assert bar.get_facecolor()[:3] == pytest.approx(palette[name])
        assert len(bars) == len(names)


def lines(axis):
    return [line for line in axis.get_lines() if len(line.get_xdata()) > 2]


def test_regimes(study):
    frame, figure = drawn("regimes", study)
    for axis, (name, rows) in zip(figure.axes, frame.groupby("format", sort=False), strict=True):
        columns = ("bound", "paper", "label", "other")
        for line, column in zip(lines(axis), columns, strict=True):
            assert np.array_equal(line.get_ydata(), rows[column].clip(1e-18, 1e6))
        fmt = format_named(name)
        # the bound holds for both components, and the label's is lost long before the other's
        assert (rows[["label", "other"]].max(axis=1) <= rows["bound"]).all()
        lost = rows["T"] > 1.5 * -math.log(fmt.unit_roundoff)
        assert (rows.loc[lost, "label"] >= 0.99).all()
        kept = rows["T"] < 0.5 * math.log(2) - 0.5 * math.log(fmt.smallest_subnormal)
        assert (rows.loc[kept, "other"] < 0.1).all()
        gone = rows["T"] > 1.1 * (math.log(2) - math.log(fmt.smallest_subnormal))
        assert (rows.loc[gone, "other"] == 1).all()


def test_regimes_truth():
    with mpmath.workprec(300):
        wanted = 3 / (1 + mpmath.exp(mpmath.mpf(2100)))
        assert abs(regimes._exact_component(700.0, 3.0) / wanted - 1) < mpmath.mpf(2) ** -100


@pytest.mark.slow
def test_scale_sweep(study):
    frame, figure = drawn("scale-sweep", study)
    palette = colours(["float16", "float32", "float64"])
    for line, name in enumerate(NAMES):
        rows = frame[(frame["network"] == name) & ~frame["is_left_out"]]
        kinds = ("delta", 1e-18), ("sign_error_rate", 0), ("robust_accuracy", 0)
        for axis, (kind, least) in zip(figure.axes[3 * line :], kinds, strict=False):
            part = rows[rows["kind"] == kind]
            for (fmt, factor), curve in part.groupby(["format", "loss_scale"]):
                wanted = curve.groupby("T")["value"].median().clip(lower=least)
                (found,) = [
                    drawn_line
                    for drawn_line in lines(axis)
                    if drawn_line.get_color() == palette[fmt]
                    and drawn_line.is_dashed() == (factor != 1)
                ]
                assert np.allclose(found.get_ydata(), wanted, rtol=1e-12, atol=0)
    out = frame[frame["is_left_out"] & (frame["network"] == NAMES[0])]
    assert f"{len(out) // 2} gradients left out" in figure.axes[0].get_title() or not len(out)
    # cancellation is back at T = 64, in float32 too, whatever the loss scale
    wide = frame[(frame["kind"] == "delta") & (frame["format"] == "float32")]
    medians = wide.groupby(["T", "loss_scale"])["value"].median()
    assert (medians[1.0] < 1e-5).all()
    assert (medians[64.0] > 0.1).all()


def test_correlation_of_the_sweep():
    points = (1, 0.1, 0.2), (2, 0.2, 0.3), (4, 0.8, 0.7), (8, 0.9, 0.9)
    rows = pd.DataFrame(
        [
            {"T": T, "kind": kind, "format": name, "loss_scale": factor, "value": value * sign}
            for T, wrong, robust in points
            for kind, value in (("sign_error_rate", wrong), ("robust_accuracy", robust))
            for name, factor, sign in (
                ("float16", 1.0, 1),
                ("float16", 1024.0, -1 if kind == "sign_error_rate" else 1),  # another sign
                ("float32", 1.0, -1 if kind == "sign_error_rate" else 1),
            )
        ]
    )
    assert sweep.correlation(rows, "float32") == pytest.approx(-1)
    assert math.isnan(sweep.correlation(rows[rows["T"] < 8], "float16"))  # too few values
    assert sweep.correlation(rows, "float16") == pytest.approx(1)
    turned = rows.assign(
        value=rows["value"].where(rows["kind"] == "robust_accuracy", -rows["value"])
    )
    assert sweep.correlation(turned, "float16") == pytest.approx(-1)


def test_tstar_trace(study):
    frame, figure = drawn("tstar-trace", study)
    for line, name in enumerate(NAMES):
        rows = frame[frame["network"] == name]
        axes = dict(
            zip(("t_star", "margin", "successful", "delta"), figure.axes[4 * line :], strict=False)
        )
        for quantity, how in (("t_star", "median"), ("margin", "median"), ("successful", "mean")):
            part = rows[rows["quantity"] == quantity].groupby("step")["value"].agg(how)
            assert np.allclose(lines(axes[quantity])[0].get_ydata(), part, rtol=1e-15)
        errors_of = rows[rows["quantity"] == "delta"]
        assert set(errors_of["hue"]) == {
            f"{loss}, {name}" for loss in ("mifpe", "tmifpe") for name in ("float16", "float32")
        }
        medians = errors_of.groupby("hue")["value"].median()
        assert medians[["mifpe, float32", "tmifpe, float32"]].max() < 1e-5
        assert medians[["mifpe, float16", "tmifpe, float16"]].min() > 1e-5


def test_phase(study):
    frame, figure = drawn("phase", study)
    assert len(frame) == len(NAMES) * 3 * 2
    for column, name in enumerate(NAMES):
        rows = frame[frame["network"] == name]
        share = rows.assign(share=rows["robust"] / rows["n"])
        axes = figure.axes[column], figure.axes[len(NAMES) + column]
        for axis, value in zip(axes, ("share", "best_margin"), strict=True):
            check_bars(axis, share, "scenario", "arithmetic", value)


def test_gpu(study):
    frame, figure = drawn("gpu", study)
    assert len(frame) == 2 * 2 * 3 * 3  # networks, arithmetics, losses, kinds
    assert (frame["refusal"] == "").all()
    axes = iter(figure.axes)
    palette = colours(gpu.LOSSES)
    for name in NAMES:
        for kind in ("delta", "step_gain", "robust_accuracy"):
            axis = next(axes)
            rows = frame[(frame["network"] == name) & (frame["kind"] == kind)]
            assert axis.get_title() == f"{name}, {4 if kind != 'robust_accuracy' else 6} images"
            for line, ranges, loss in zip(
                axis.get_lines(), axis.collections, gpu.LOSSES, strict=True
            ):
                wanted = rows[rows["loss"] == loss]
                assert line.get_color() == palette[loss]
                assert list(line.get_xdata()) == list(wanted["value"])
                assert list(np.round(line.get_ydata())) == [0, 1]
                ends = [segment[:, 0].tolist() for segment in ranges.get_segments()]
                assert ends == wanted[["low", "high"]].to_numpy().tolist()
    # the same, measured and attacked again at the doors
    subject = study.subjects[0]
    few = subject.images.first(4)
    again = measure(
        subject.model, few.x, few.y, losses=["mifpe"], formats=["float32@cuda"], progress=False
    ).frame
    values = frame.set_index(["network", "loss", "arithmetic", "kind"]).sort_index()
    found = values.loc[(NAMES[0], "mifpe", "float32@cuda")]
    assert found.loc["delta", "value"] == pytest.approx(again["delta"].median(), rel=1e-12)
    assert found.loc["step_gain", "low"] == pytest.approx(again["step_gain"].quantile(0.25))
    result = attack(
        subject.model, subject.images.x, subject.images.y, radius=0.015, steps=3, loss="mifpe",
        format="float32@cuda",
    )  # fmt: skip
    withstand = int((~result.success).sum())
    interval = binomtest(withstand, 6).proportion_ci(method="wilson")
    assert list(found.loc["robust_accuracy", ["value", "low", "high"]]) == pytest.approx(
        [withstand / 6, interval.low, interval.high]
    )
    # had the emulation not been on, the two lines would be the same
    plain = values.loc[(NAMES[0], "mifpe", "float32")]
    assert found.loc["delta", "value"] > plain.loc["delta", "value"]


def test_gpu_has_every_emulated_format_and_says_so(study, monkeypatch):
    monkeypatch.undo()
    assert ("float32", *(f.name for f in EMULATED)) == gpu.ARITHMETICS
    rows = [
        {"network": NAMES[0], "arithmetic": name, "loss": "ce", "kind": "delta", "value": 0.1,
         "low": 0.1, "high": 0.2, "n": 4, "left_out": 0, "refusal": ""}
        for name in gpu.ARITHMETICS
    ]  # fmt: skip
    figure = gpu.draw(pd.DataFrame(rows))
    assert "emulated" in figure.get_suptitle()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == list(gpu.ARITHMETICS)


def test_gpu_names_what_is_refused_or_not_judged(study, monkeypatch):
    known = study_module.measure

    def refusing(*args, formats, **options):
        if formats == ["float32@cuda"]:
            raise ModelError("no layer of this network is a linear one")
        report = known(*args, formats=formats, **options)
        report.frame.loc[report.frame.index[0], "delta"] = math.nan
        return report

    monkeypatch.setattr(study_module, "measure", refusing)
    frame, figure = drawn("gpu", Study(study.subjects[:1], study.cache / "refusing"))
    refused = frame[frame["arithmetic"] == "float32@cuda"]
    assert set(refused["refusal"]) == {"no layer of this network is a linear one"}
    assert refused["value"].isna().all()
    for axis in figure.axes:
        (text,) = axis.texts
        assert (text.get_text(), text.get_position()[1]) == ("refused", 1)
        assert all(list(np.round(line.get_ydata())) == [0] for line in axis.get_lines())
    assert figure.axes[0].get_title().endswith("4 images\n(up to 1 not judged)")
    assert "judged" not in figure.axes[1].get_title()


def test_stages(study):
    frame, figure = drawn("stages", study)
    places = iter(figure.axes)
    for name in NAMES:
        for column in ("stage", "share"):
            for loss in ("ce", "mifpe"):
                rows = frame[(frame["network"] == name) & (frame["loss"] == loss)]
                shown = errors.long_form(rows, column)
                check_bars(
                    next(places),
                    shown,
                    "format",
                    "stage",
                    "value",
                    [s for s in STAGES if s != "constants"],
                )
    shares = frame[[f"share_{stage}" for stage in STAGES]]
    assert np.allclose(shares.dropna().sum(axis=1), 1, atol=1e-9)


def test_bound(study):
    frame, figure = drawn("bound", study)
    shown = errors.error_bound_pairs(frame)
    ours = shown[shown["kind"] == "proved"]
    assert len(ours)
    assert (ours["measured"] <= ours["bound"]).all()
    for axis, (_, rows) in zip(figure.axes, shown.groupby("format", sort=False), strict=True):
        points = sorted(map(tuple, np.asarray(axis.collections[0].get_offsets())))
        wanted = sorted(map(tuple, rows[["bound", "measured"]].clip(1e-20, 1e8).to_numpy()))
        assert np.allclose(points, wanted, rtol=1e-12, atol=0)
        theirs = rows[rows["kind"] != "proved"]
        count = int((theirs["measured"] > theirs["bound"]).sum())
        assert f"papers' u/G {count} of {len(theirs)}" in axis.get_title()


def test_layers(study):
    study = Study(study.subjects[:1], study.cache)
    frame, figure = drawn("layers", study)
    for column, (_, rows) in enumerate(frame.groupby("format", sort=False)):
        contributions = rows.groupby("position")["contribution"].median()
        found = [bar.get_height() for bar in figure.axes[2 + column].patches]
        assert np.allclose(found, contributions, rtol=1e-12, atol=0)
        assert np.allclose(rows.groupby("sample")["share"].sum(), 1, atol=1e-9)


def test_sign_map(study):
    frame, figure = drawn("sign-map", study)
    axes = iter(figure.axes)
    for (name, loss), rows in frame.groupby(["network", "loss"], sort=False):
        wrong = signs.sign_errors(rows)
        for values in (rows["pixel"], rows["exact"], rows["computed"], wrong):
            (picture,) = next(axes).get_images()
            assert np.array_equal(np.asarray(picture.get_array()).reshape(-1), values)
        rate = (wrong > 0).sum() / (rows["exact"] != 0).sum()
        # the same image, measured: another engine's signs, and the columns of the report
        subject = next(s for s in study.subjects if s.name == name)
        one = slice(rows["sample"].iloc[0], rows["sample"].iloc[0] + 1)
        report = errors.measure(
            subject.model, subject.images.x[one], subject.images.y[one],
            losses=[loss], formats=["float16"],
        )  # fmt: skip
        assert rate == pytest.approx(float(report.frame["sign_error_rate"].iloc[0]), abs=1e-12)
    assert (signs.sign_errors(frame[frame["loss"] == "ce"]) == 2).any()


def test_cost(study, monkeypatch):
    monkeypatch.setattr(cost, "_PATIENCE", math.inf)  # however slow the machine is
    frame, figure = drawn("cost", study)
    assert set(frame["engine"]) == {"PyTorch", "float64", "double_word", "ball", "mpmath"}
    assert not frame["is_extrapolated"].any()
    model, x = cost._network(2), torch.rand(3, 1, 28, 28)
    sizes = 196 * 9 * 2 + 49 * 9 * 8 + 49 * 9 * 16 + 196 * 8 + 80
    assert cost.multiply_adds(model, x) == sizes
    for line, (_, rows) in zip(
        [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2],
        frame.groupby("engine", sort=False),
        strict=True,
    ):
        assert np.array_equal(line.get_ydata(), rows["seconds"])


def test_costs_beyond_patience_are_extrapolated_and_say_so(study, monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_PATIENCE", 1e-9)
    frame = cost.frame(Study((), tmp_path))
    for _, rows in frame.groupby("engine"):
        (first, second) = rows.itertuples()
        assert (first.is_extrapolated, second.is_extrapolated) == (False, True)
        ratio = second.multiply_adds / first.multiply_adds
        assert second.seconds == pytest.approx(first.seconds * ratio)
    figure = cost.draw(frame)
    dashed = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert len(dashed) == 5


def test_table1(study, tmp_path):
    paths = make("table1", study, tmp_path, "fperr figures table1", ("png",))
    assert [p.suffix for p in paths] == [".json", ".png", ".md", ".tex"]
    frame = table1.frame(study)
    assert (frame["source"] == "published").sum() == len(published.ROWS) == 26
    for name in NAMES:
        rows = frame[frame["row"] == name]
        assert list(rows["arithmetic"]) == ["float32", "float32@cuda"]
        for _, row in rows.iterrows():
            found = attacks.attack_outcomes(
                study, Subject(name, 6), loss="tmifpe", format=row["arithmetic"]
            )
            assert row["tmifpe"] == pytest.approx(100 * (~found["success"]).mean())
            assert row["clean"] == pytest.approx(100 * (found["first_success_step"] != 0).mean())
        assert rows["cw"].isna().tolist() == [False, True]
    text = paths[2].read_text()
    assert "| Fast adversarial training, SmallCNN" in text
    assert "| fperr, float32@cuda, 6 images" in text
    assert "emulated" in text
    assert "github.com/yaodongyu/TRADES" in text
    cells = table1.cells(frame)
    lines_of = [line for line in text.splitlines() if line.startswith("| ")]
    for line, (_, row) in zip(lines_of[1:], cells.iterrows(), strict=True):
        assert [cell.strip() for cell in line.strip("|").split("|")] == list(row)
    latex = [line for line in paths[3].read_text().splitlines() if line.endswith("\\\\")]
    assert len(latex) == len(frame) + 1
    for line in latex:  # C&W's own sign is escaped
        assert len(re.findall(r"(?<!\\)&", line)) == len(cells.columns) - 1
    assert r"C\&W" in latex[0]


def test_lines_by_arithmetic_are_of_the_same_images_and_may_be_refused(study, monkeypatch):
    known = table1.attack_outcomes

    def refusing(study, subject, *, loss, format):
        if format == "float32@cuda":
            raise ModelError("no layer of this network is a linear one")
        return known(study, subject, loss=loss, format=format)

    monkeypatch.setattr(table1, "_MOST", 4)
    monkeypatch.setattr(table1, "attack_outcomes", refusing)
    frame = table1.frame(Study(study.subjects[:1], study.cache))
    rows = frame[frame["row"] == NAMES[0]]
    assert list(rows["arithmetic"]) == ["float32", "float32", "float32@cuda"]
    assert list(rows["n"])[:2] == [6, 4]
    few = known(study, Subject(NAMES[0], 4), loss="ce", format="float32")
    assert rows["ce"].iloc[1] == pytest.approx(100 * (~few["success"]).mean())
    assert rows["where"].iloc[2] == "refused: no layer of this network is a linear one"
    assert set(table1.cells(rows).iloc[2][list(table1.NAMES.values())]) == {""}


def test_published_rows_stand_above_the_networks_at_hand(fperr_data, tmp_path):
    study = Study((Subject("mnist_fastat_pgd", 6),), tmp_path)
    frame = table1.frame(study)
    place = frame.index[frame["row"] == "mnist_fastat_pgd"][0]
    assert frame["row"][place - 1] == "Fast adversarial training, SmallCNN"
    assert frame["ce"][place - 1] == 86.82


@pytest.mark.slow
def test_boost(study):
    study = Study(study.subjects[1:], study.cache)
    frame = boost.frame(study)
    share = frame.set_index(["attack", "loss"])["robust"]
    assert math.isnan(share["APGD, without the split", "own"])
    together = share["AutoAttack", "own"]
    assert together <= share["APGD-DLR", "own"]
    assert share["AutoAttack", "tmifpe"] <= share["APGD-CE", "tmifpe"]
    cells = boost.cells(frame)
    assert list(cells.loc[3, ["MIFPE", "T-MIFPE", "stable CE"]]) == ["–"] * 3  # the line above
    assert list(cells["attack"]) == [line.name for line in boost.LINES] + ["AutoAttack"]
    line = cells[cells["attack"] == "PGD"].iloc[0]
    assert line["T-MIFPE"] == f"{100 * share['PGD', 'tmifpe'] / 6:.1f}"


def test_boost_without_the_library(study, monkeypatch):
    monkeypatch.setattr(boost, "LIBRARY", "no_such_library")
    frame = boost.frame(Study(study.subjects[1:], study.cache))
    cells = boost.cells(frame)
    assert set(cells.iloc[-1, 2:]) == {"–"}


def test_a_rescaled_network_has_mifpe_for_cross_entropy():
    subject = Subject("fashion_saturated", 6)
    x, y = subject.images.x, subject.logits.argmax(1)
    for loss in ("mifpe", "tmifpe"):
        wrapped = boost.Rescaled(subject.model, loss).eval()
        one = Subject(subject.name, 6)
        object.__setattr__(one, "model", wrapped)
        mine = signs.gradient(one, x, y, loss="ce", format="float32")
        same = signs.gradient(subject, x, y, loss=loss, format="float32")
        assert torch.equal(mine, same)
        plain = signs.gradient(subject, x, y, loss="ce", format="float32")
        assert not torch.equal(plain.sign(), same.sign())


def test_radii_belong_to_networks_and_data():
    assert attacks.radius_of(Subject("fashion_standard", 6)) == 0.015
    assert attacks.radius_of(Subject("mnist_wong_kolter", 6)) == 0.3
    assert attacks.radius_of(Subject("cifar_wong_kolter_small_8px", 6)) == 8 / 255
    assert not [name for name in FIGURES["table1"].networks if name.startswith("cifar")]


def test_sign_maps_have_one_channel(fperr_data, tmp_path):
    study = Study((Subject("cifar_wong_kolter_small_8px", 2),), tmp_path)
    with pytest.raises(ValueError, match="images of one channel"):
        signs.frame(study)


def test_provenance_says_the_steps_that_were_taken():
    """Against the constants that the modules' attacks use, here not shortened."""
    source = Path(sweep.__file__).read_text()
    assert FIGURES["scale-sweep"].steps == int(re.search(r"^STEPS = (\d+)", source, re.M)[1]) == 30
    assert FIGURES["phase"].steps == 100


def test_paper_sizes():
    assert paper_size("mnist_fastat_pgd", None) == 10_000
    assert paper_size("mnist_levelsets_eps0.4", None) == 2_000
    assert paper_size("mnist_levelsets_eps0.4", 1_000) == 1_000
    assert paper_size("fashion_standard", None) in (1_000, 10_000)


@pytest.mark.slow
def test_where_a_half_format_takes_part_all_take_the_same_images(study, monkeypatch):
    one = Study(study.subjects[:1], study.cache)
    monkeypatch.setattr(sweep, "_MEASURED", 4)
    for module, frame in (
        (accuracy, accuracy.precision_frame),
        (tstar, tstar.phase_frame),
        (sweep, sweep.frame),
    ):
        monkeypatch.setattr(module, "HALF", 4)
        assert set(frame(one)["n"]) == {4}


def test_other_versions_or_settings_make_another_cache(study, monkeypatch):
    calls = []

    def compute(subject):
        calls.append((subject.name, subject.n))
        return pd.DataFrame({"a": [1]})

    once = [(name, 3) for name in NAMES]
    for _ in range(2):
        study.for_each_subject("errors", compute, 3, radius=0.1)
    assert calls == once
    study.for_each_subject("errors", compute, 3, radius=0.2)
    assert calls == once * 2
    monkeypatch.setitem(study_module.VERSIONS, "sweep", 99)  # another figure's
    study.for_each_subject("errors", compute, 3, radius=0.1)
    assert calls == once * 2
    monkeypatch.setitem(study_module.VERSIONS, "errors", 99)
    study.for_each_subject("errors", compute, 3, radius=0.1)
    assert calls == once * 3


def test_an_attack_is_kept_by_its_own_version(study, monkeypatch):
    subject = study.subjects[0].at_most(2)
    folders = study.cache / "attacks"
    options = {"loss": "ce", "radius": 0.1, "steps": 1}

    def attack_again():
        study.attack_outcomes(subject, **options)
        return len(list(folders.glob(f"{subject.name}-ce-*")))

    before = attack_again()
    assert attack_again() == before
    monkeypatch.setitem(study_module.VERSIONS, "attack", 99)
    assert attack_again() == before + 1


@pytest.mark.parametrize("name", ["regimes", "phase", "gpu", "table1"])
def test_pictures_are_neither_empty_nor_cut(name, study, tmp_path):
    paths = make(name, study, tmp_path, "", ("png",))
    picture = matplotlib.image.imread(paths[1])[..., :3]
    assert min(picture.shape[:2]) > 300
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edge > 0.99).all()  # nothing reaches the border
    about = json.loads(paths[0].read_text())
    assert about["attacks"]["seed"] == 0
    assert about["attacks"]["steps"] == FIGURES[name].steps
    assert about["images"] == (dict.fromkeys(NAMES, 6) if name in ("phase", "gpu") else {})
    assert set(about["networks"]) == set(NAMES)
