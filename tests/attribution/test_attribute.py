"""`fperr.attribute` on networks whose gaps are known, and on changes that must not matter."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fperr
from fperr import data, zoo
from fperr.attacks import UnjudgedWarning
from fperr.attribution.paired import paired_difference
from fperr.attribution.parts import parts_of
from fperr.attribution.sentences import sentence, share_of_gap
from fperr.attribution.stand_in import StandIn, chosen_images, compared
from fperr.errors import UncertifiedGradientWarning, UnsupportedOperationError
from tests.conftest import Of, seeded, tiny_mlp

IMAGES = data.fashion_mnist_1000().first(50)
RADII = {"fashion_saturated": 0.05, "fashion_standard": 0.015, "fashion_adversarial": 0.1}
ARMS = ["ce", "stable_ce", "cw", "mifpe", "tmifpe", "exact_ce", "exact_mifpe"]


def attributed(model, radius, images=IMAGES, **options):
    given = {"steps": 10, "starts": 2, "exact": "all", "progress": False, **options}
    return fperr.attribute(model, images.x, images.y, radius=radius, **given)


@pytest.fixture(scope="module")
def results():
    return {
        name: attributed(zoo.load(name), radius, search="restarts", why=True)
        for name, radius in RADII.items()
    }


def test_parts_add_up_to_the_gap(results):
    for result in results.values():
        total = sum(p.difference.estimate for p in result.parts if p.is_of_gap)
        assert total == pytest.approx(result.part("gap").difference.estimate, abs=1e-12)
        steps = ("underflow", "cancellation", "rest")
        why = sum(result.part(name).difference.estimate for name in steps)
        assert why == pytest.approx(result.part("numerical").difference.estimate, abs=1e-12)


def test_a_saturated_network_loses_most_of_it_to_rounding(results):
    result = results["fashion_saturated"]
    numerical = result.part("numerical").difference
    assert numerical.low > 0.4
    assert numerical.only_second == 0
    assert "points are floating-point error" in result.sentence
    assert (
        "none only with it). Use stable_ce, cw, mifpe or tmifpe. What MIFPE gains"
        in result.sentence
    )
    assert "All starts of all attacks together leave" in repr(result)
    # neither repair alone does it
    assert 0 < result.part("underflow").difference.estimate < numerical.estimate
    assert result.frame["never_had_gradient"].mean() > 0.5
    assert any("% of the gap of" in remark for remark in result.remarks)


@pytest.mark.parametrize("name", ["fashion_standard", "fashion_adversarial"])
def test_networks_with_gradients_lose_nothing(results, name):
    """Negative control: few images, so that the sentence claims no more than it may."""
    result = results[name]
    numerical = result.part("numerical").difference
    assert numerical.low < 0 < numerical.high
    assert "too few images to tell" in result.sentence
    assert not any("% of the gap of" in remark for remark in result.remarks)
    agree = result.frame["exact_ce"] == result.frame["stable_ce"]
    assert agree.mean() >= 0.95


class Times(nn.Module):
    """A network with its logits times a number."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


def test_logits_times_128_are_a_gap_of_rounding(results):
    """A power of two: MIFPE sees the same network, bit for bit; cross-entropy saturates."""
    plain = results["fashion_standard"]
    scaled = attributed(
        Times(zoo.load("fashion_standard"), 128.0).eval(), RADII["fashion_standard"]
    )
    assert (scaled.frame["mifpe"] == plain.frame["mifpe"]).all()
    assert (scaled.frame["exact_mifpe"] == plain.frame["exact_mifpe"]).all()
    for name in ("numerical", "gap"):
        before, after = (r.part(name).difference.estimate for r in (plain, scaled))
        assert after > before + 0.2
    assert scaled.part("numerical").difference.is_told


@pytest.mark.slow
def test_tiny_margins_have_no_rounding_to_speak_of():
    model = Times(zoo.load("fashion_adversarial"), 2.0**-7).eval()
    numerical = attributed(model, RADII["fashion_adversarial"]).part("numerical").difference
    assert numerical.only_first + numerical.only_second <= 1


@pytest.mark.slow
def test_float64_loses_less(results):
    wide = attributed(zoo.load("fashion_saturated"), RADII["fashion_saturated"], format="float64")
    narrow = results["fashion_saturated"].part("numerical").difference
    assert wide.part("numerical").difference.estimate < narrow.estimate


def test_an_ulp_of_the_inputs_is_no_difference(results):
    """Null arm: every point that the network sees is one ulp further up."""
    model = zoo.load("fashion_saturated")

    def shifted(x):
        return model(x + (torch.nextafter(x, torch.ones_like(x)) - x).detach())

    jittered = attributed(Of(shifted).eval(), RADII["fashion_saturated"], exact="none")
    plain = results["fashion_saturated"].frame
    null = paired_difference(plain["stable_ce"], jittered.frame["stable_ce"])
    assert null.low < 0 < null.high
    # the same comparison sees a difference where there is one
    assert paired_difference(plain["ce"], jittered.frame["stable_ce"]).is_told


def test_a_stand_in_is_compared_with_exact_gradients(results):
    sample = attributed(zoo.load("fashion_saturated"), RADII["fashion_saturated"], exact="sample")
    whole = results["fashion_saturated"]
    stand_in = sample.stand_in
    assert stand_in.discordant == (whole.frame["ce"] != whole.frame["stable_ce"]).sum()
    assert stand_in.random + stand_in.discordant == sample.frame["exact_ce"].notna().sum()
    assert stand_in.sentence in sample.remarks
    known = sample.frame["exact_ce"].notna()
    assert (sample.frame["exact_ce"] == whole.frame["exact_ce"])[known].all()
    assert sample.part("numerical").second == "stable_ce"


def test_a_stand_in_that_differs_is_noticed():
    ce, stable = np.ones(100), np.repeat([0.0, 1.0], [10, 90])
    discordant, random = chosen_images(ce, stable, seed=0)
    assert discordant.tolist() == list(range(10))
    assert len(random) == 30
    exact = stable.copy()
    exact[[discordant[0], random[0], random[1]]] = 0.5
    found = compared(stable, exact, discordant, random)
    assert (found.random_differing, found.discordant_differing) == (2, 1)
    assert found.differing_starts == pytest.approx(0.05)  # half of the starts of one of ten
    assert found.limit == pytest.approx(0.195, abs=0.001)


def outcomes(n=2000, **columns):
    """A frame of outcomes that are known; what is not named withstands."""
    frame = pd.DataFrame({"sample": range(n), "is_judged": True, **dict.fromkeys(ARMS, 1.0)})
    for name, fooled in columns.items():
        frame.loc[: fooled - 1, name] = 0.0
    return frame


@pytest.mark.parametrize(
    ("n", "columns", "text"),
    [
        (200, {"exact_ce": 10, "stable_ce": 10, "exact_mifpe": 10, "mifpe": 10},
         "leaves 100.0 %. Without rounding it would leave 95.0 %: 5.0 [1.4, 8.4] points are "
         "floating-point error (10 of 200 images fall only without it, none only with it). Use "
         "stable_ce or mifpe."),
        (2000, {}, "less than 0.5 points of floating-point error, 0.0 [-0.2, 0.2] (none of 2000"),
        (2000, {"exact_mifpe": 40}, "What MIFPE gains, 2.0 [1.4, 2.6] points, is a better direc"),
        (2000, {"exact_ce": 40}, "MIFPE does worse, by 2.0 points."),
        (500, {}, "no floating-point error seen, 0.0 [-0.8, 0.8] points (none of 500 images fall "
                  "only without it, none only with it; about 654 images would tell)."),
        (100, {}, "too few images to tell how much is floating-point error, 0.0 [-3.8, 3.8] poin"),
        (20, {}, "0.0 [-16.3, 16.3] points (about 654 images would tell)"),
        (8, {"exact_ce": 4}, "(4 of 8 images fall only without it, none only with it, and 50.0 % "
                             "is left without it; about 50 images would tell)"),
        (200, {"ce": 20}, ": rounding helps the attack, by 10.0 ["),
        (200, {"ce": 4}, "too few images to tell how much is floating-point error, -2.0 ["),
    ],
)  # fmt: skip
def test_what_is_said(n, columns, text):
    frame = outcomes(n, **columns)
    parts = parts_of(frame, is_exact=True, confidence=0.95)
    assert text in sentence(frame, parts, None, None)


def test_a_share_is_said_only_where_it_is_one():
    def shown(**columns):
        return share_of_gap(parts_of(outcomes(500, **columns), is_exact=True, confidence=0.95))

    assert shown(exact_ce=50, exact_mifpe=100).startswith("50 % of the gap of 20.0 [")
    assert shown(exact_ce=100, exact_mifpe=50) is None  # 200 %
    assert shown(ce=50, exact_mifpe=150) is None  # the gap is not the sum of parts of one sign
    assert shown() is None  # no gap


def test_a_stand_in_that_is_refuted_tells_nothing_about_rounding():
    """Negative control: cross-entropy and its stand-in agree, and exact gradients do not."""
    frame = outcomes(2000)
    parts = parts_of(frame, is_exact=False, confidence=0.95)
    assert parts[0].difference.is_equivalent
    assert parts[0].words == "stable cross-entropy, in its stead"
    text = sentence(frame, parts, StandIn(30, 22, 0, 0, 0.0, 0.85), None)
    assert "How much is rounding is not told: exact gradients differ from stable" in text
    assert "less than 0.5 points" not in text
    assert "nothing exact was computed" in sentence(frame, parts, None, None)
    assert "less than 0.5 points" in sentence(frame, parts, StandIn(30, 0, 0, 0, 0.0, 0.1), None)


def test_what_autoattack_fooled_is_counted_apart_from_other_starts():
    frame = outcomes(100, mifpe=20)
    frame["exact_mifpe"] = np.repeat([0.5, 1.0], [20, 80])
    frame["floor"] = np.repeat([0.0, 1.0], [20, 80])
    frame["autoattack_fooled"] = False
    parts = parts_of(frame, is_exact=True, confidence=0.95)
    text = sentence(frame, parts, None, "autoattack")
    assert "together leave 80.0 %; AutoAttack fooled none of the images that withstood" in text


def test_what_is_not_judged_is_left_out_and_said():
    frame = outcomes(200, exact_ce=20)
    frame.loc[:9, "is_judged"] = False
    parts = parts_of(frame, is_exact=True, confidence=0.95)
    assert parts[0].difference.only_first == 10
    assert "(10 of 200 images could not be judged and are left out)" in sentence(
        frame, parts, None, None
    )
    frame["is_judged"] = False
    parts = parts_of(frame, is_exact=True, confidence=0.95)
    assert "None of 200 images could be judged" in sentence(frame, parts, None, None)


def test_images_whose_logits_overflow_are_not_judged():
    def overflowing(x):
        return torch.where(x[:, :1] > 0.5, torch.inf, 1.0) * torch.cat([x[:, :2], x[:, :1]], 1)

    x = torch.tensor([[0.9, 0.2], [0.2, 0.1], [0.1, 0.3]])
    y = torch.tensor([0, 0, 1])
    result = fperr.attribute(
        Of(overflowing).eval(), x, y, radius=0.05, steps=2, starts=1, exact="none", progress=False
    )
    assert result.frame["is_judged"].tolist() == [False, True, True]
    assert "1 of 3 images could not be judged" in result.sentence
    assert "nothing exact was computed" in result.sentence
    assert any("the intervals are rough" in remark for remark in result.remarks)


class RootOfTheBright(nn.Module):
    """Logits with a square root that is exactly zero, where PyTorch's slope is NaN, in the dark."""

    def forward(self, x):
        root = (x[:, :1] * (x[:, :1] > 0.5)).sqrt()
        return torch.cat([x[:, :2] + root, x[:, 1:2] - root], 1)


def test_an_exact_gradient_that_cannot_be_had_costs_its_image_only():
    x = torch.tensor([[0.9, 0.2], [0.2, 0.1], [0.8, 0.3]])
    y = torch.tensor([0, 0, 0])
    model = RootOfTheBright().eval()
    with (
        pytest.warns(UncertifiedGradientWarning, match=r"sample 1: .*infinite slope"),
        pytest.warns(UnjudgedWarning, match="an exact gradient that could not be certified"),
    ):
        attack = fperr.attack(model, x, y, radius=0.02, steps=2, format="exact")
    assert attack.is_judged.tolist() == [True, False, True]
    result = fperr.attribute(
        model, x, y, radius=0.02, steps=2, starts=1, exact="all", progress=False
    )
    assert result.frame["is_judged"].tolist() == [True, False, True]
    assert np.isnan(result.frame["exact_ce"][1])
    assert "1 of 3 images could not be judged" in result.sentence


def test_targets_are_reached():
    targets = (IMAGES.y + 1) % 10
    images = IMAGES.first(20)
    model = zoo.load("fashion_saturated")
    result = attributed(model, 0.1, images, targets=targets[:20], search="restarts")
    assert result.kind.startswith("PGD, float32, targeted")
    # on the way to a target p_y is nearly 1: cross-entropy's gradient is not lost there
    assert (result.frame["ce"] == result.frame["exact_ce"]).all()
    reached = fperr.attack(
        model, images.x, images.y, targets=targets[:20], radius=0.1, steps=10, loss="ce"
    )
    assert (result.frame["ce"].to_numpy()[reached.success.numpy()] < 1).all()
    assert result.frame["ce"].mean() < 0.5
    untargeted = attributed(model, 0.1, images, exact="none").frame
    assert untargeted["ce"].mean() > result.frame["ce"].mean()  # it has no gradient


def test_an_uncapturable_network_says_why_there_is_nothing_exact():
    model = seeded(nn.Sequential(nn.Linear(6, 4), Of(lambda x: torch.special.i0(x))))
    x, y = torch.rand(8, 6), torch.zeros(8, dtype=torch.long)
    options = {"radius": 0.1, "steps": 2, "starts": 1, "progress": False}
    result = fperr.attribute(model, x, y, **options)
    assert "nothing could be compared" in result.note
    assert result.note in result.remarks
    with pytest.raises(UnsupportedOperationError):
        fperr.attribute(model, x, y, exact="all", **options)


def test_a_folder_is_continued_and_its_choice_kept(tmp_path, monkeypatch):
    model, folder = zoo.load("fashion_saturated"), tmp_path / "run"
    images = IMAGES.first(20)
    first = attributed(model, 0.05, images, exact="auto", out=folder, search="restarts")
    assert json.loads((folder / "attribution.json").read_text())["settings"]["exact"] == "all"

    def forbidden(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("fperr.attacks.batches.attack", forbidden)
    monkeypatch.setattr("fperr.attribution.forecast.attack", forbidden)
    again = attributed(model, 0.05, images, exact="auto", out=folder, search="restarts")
    assert again.sentence == first.sentence
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "attribution.parquet"), first.frame)
    assert first.sentence in (folder / "attribution.html").read_text()
    with pytest.raises(
        ValueError, match=r"holds another attribution \(radius 0.05 there, 0.06 her"
    ):
        attributed(model, 0.06, images, out=folder, search="restarts")


KILLED = """
import fperr, sys
from fperr import data, zoo
images = data.fashion_mnist_1000().first(24)
fperr.attribute(zoo.load("fashion_saturated"), images.x, images.y, radius=0.05, steps=10, starts=2,
                exact="none", batch_size=6, out=sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_a_kill_loses_no_batch(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)])
    while len(list(folder.rglob("*.safetensors"))) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    images = data.fashion_mnist_1000().first(24)
    options = {"steps": 10, "exact": "none", "batch_size": 6}
    result = attributed(zoo.load("fashion_saturated"), 0.05, images, out=folder, **options)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    whole = attributed(zoo.load("fashion_saturated"), 0.05, images, **options)
    pd.testing.assert_frame_equal(result.frame, whole.frame)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # of pyautoattack
def test_autoattack_is_the_floor(tmp_path):
    images = IMAGES.first(4)
    options = {"exact": "none", "search": "autoattack", "out": tmp_path / "run"}
    result = attributed(zoo.load("fashion_standard"), 0.005, images, **options)
    assert (result.frame["floor"] <= result.frame[["ce", "mifpe"]].min(axis=1)).all()
    assert "; AutoAttack fooled" in result.sentence
    assert (tmp_path / "run" / "autoattack.json").exists()


def test_images_without_a_gradient_are_counted_with_what_becomes_of_them(results):
    """Those that withstand exact gradients, too, are no loss to rounding."""
    result = results["fashion_saturated"]
    frame = result.frame.copy()
    frame.loc[frame.index[:3], "is_judged"] = False
    judged = frame[frame["is_judged"]]
    dead = judged[judged["never_had_gradient"]]
    assert 0 < (dead["exact_ce"] == 1).sum() < len(dead)
    changed = replace(result, frame=frame)
    assert (
        f"At {len(dead)} of {len(frame)} images every gradient of cross-entropy was exactly zero; "
        f"{(dead['exact_ce'] == 1).sum()} of them withstand exact gradients, too."
    ) in changed.remarks


def test_the_page_says_what_was_attacked_and_with_what(tmp_path):
    model, x = tiny_mlp(), torch.rand(2, 6)
    options = {"radius": 0.1, "steps": 1, "starts": 1}
    y = torch.tensor([0, 1])
    result = fperr.attribute(model, x, y, name="<mine>", out=tmp_path / "out", **options)
    page = (tmp_path / "out" / "attribution.html").read_text()
    assert page == result.to_html()
    shown = ["&lt;mine&gt;", f"fperr {fperr.__version__}, torch {torch.__version__}", "linf 0.1"]
    shown += [data.digest(x, y), data.digest(*model.state_dict().values())]
    assert [words for words in shown if words not in page] == []
    plain = fperr.attribute(model, x, y, **options)
    assert plain.provenance["network"] == "Sequential"
    with pytest.raises(ValueError, match="name must be a name, got ' ': give at least one letter"):
        fperr.attribute(model, x, y, name=" ", **options)


def test_the_page_and_the_figure_say_the_same(results):
    result = results["fashion_saturated"]
    assert result.sentence in result.to_html()
    figure = result.plot.waterfall()
    texts = [text.get_text() for text in figure.axes[0].texts]
    size = result.part("numerical").difference
    assert (
        f"{100 * size.estimate:.1f} points [{100 * size.low:.1f}, {100 * size.high:.1f}]" in texts
    )
    report = fperr.measure(tiny_mlp(), torch.rand(2, 6), losses=["ce"], formats=["float32"])
    page = report.to_html(attributions={"fashion_saturated": result.section})
    assert "fashion_saturated: what an attack loses" in page
    assert result.sentence in page
    assert "what an attack loses" not in report.to_html()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"targets": (IMAGES.y + 1) % 10, "search": "autoattack"},
            "search must be None or 'restar",
        ),
        ({"box": (-1.0, 2.0), "search": "autoattack"}, r"box must be \(0, 1\) with search='autoa"),
        ({"format": "exact"}, "unknown format 'exact': expected one of float16"),
        ({"radius": 0.0}, "radius must be a finite number above 0"),
        ({"starts": 0}, "starts must be"),
        ({"targets": IMAGES.y}, "targets"),
    ],
)
def test_bad_arguments_are_answered_with_a_sentence(options, text):
    with pytest.raises(ValueError, match=text):
        attributed(zoo.load("fashion_standard"), **{"radius": 0.1, **options})


def test_one_image_and_one_start_tell_nothing_and_say_so():
    result = attributed(zoo.load("fashion_standard"), 0.01, IMAGES.first(1), starts=1)
    assert "too few images to tell" in result.sentence
    with pytest.raises(ValueError, match=r"name must be one of 'numerical', .* got 'nothing'"):
        result.part("nothing")
