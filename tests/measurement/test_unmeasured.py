"""Rows that could not be measured: why, in words that are true, and never as if all were well."""

import math
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import fperr
from fperr.reasons import (
    FLAT,
    INPUT_NOT_FINITE,
    NOT_CERTIFIED,
    SCALE_CAPPED,
    UNDEFINED,
    UnmeasuredWarning,
    not_certified,
    not_finite,
    tally,
    too_few_bits,
    unusable_scale,
)
from fperr.report.answer import answer, verdicts
from fperr.report.frame import COLUMNS
from fperr.report.summary import headline
from fperr.report.verdict import Thresholds
from tests.conftest import normal, seeded, tiny_mlp

ONE = ["untargeted_unsuccessful"]


class Then(nn.Module):
    """What a model returns, changed."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x):
        return self.change(self.model(x))


class Undecidable(nn.Module):
    """A ReLU at exp(h) exp(-h) - 1, which is 0 and which no enclosure can tell from 0."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.inner(x)
        return self.outer(torch.relu(h.exp() * (-h).exp() - 1) + h)


def diagonal(size, factor=1.0):
    linear = nn.Linear(size, size, bias=False).eval()
    with torch.no_grad():
        linear.weight.copy_(factor * torch.eye(size))
    return linear


def flat():
    model = seeded(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # no unit is active where the input is small
    return model


def overflowing():
    model = tiny_mlp()
    with torch.no_grad():
        model[2].bias[0] = 1e5
    return model


def with_a_nan():
    x = normal(3, 6)
    x[1, 2] = math.nan
    return x


def close_classes():
    """Two classes of the same weights and far above the others: their gradients cancel."""
    model = seeded(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4)))
    with torch.no_grad():
        model[2].weight.mul_(100)
        model[2].weight[1] = model[2].weight[0]
        model[2].bias[1] = model[2].bias[0] + 0.25
        model[2].bias[:2] += 400
    return model


TIE = torch.tensor([[1.0, 1.0, 1.0, 0.0]])  # DLR's denominator is the first minus the third
WIDE = torch.tensor([[9.0, 1.0, 0.0], [2.0, 8.0, 0.5]])

# name: (model, x, options, the reason of the rows that have one)
# with the engine's own words
UNDECIDED = not_certified(
    "0.0 of 87 bits are proved at 840 bits, the largest working precision allowed: relu: 4 "
    "decisions, the first at (0, 0), are closer than Arb balls, 840 bits can tell"
)
CASES = {
    "input": (tiny_mlp(), with_a_nan(), {}, INPUT_NOT_FINITE),
    "undecided": (seeded(Undecidable()), normal(2, 4), {"engine": "ball"}, UNDECIDED),
    "scale": (
        diagonal(3, 64.0),
        WIDE,
        {"losses": ["mifpe:T=1e-6"], "formats": ["float16"]},
        "its scale T/margin is 0",
    ),
    "undefined": (diagonal(4), TIE, {"y": [0], "losses": ["dlr", "cw"]}, UNDEFINED),
    "flat": (flat(), normal(2, 3), {"losses": ["mifpe"]}, FLAT),
    "logits": (overflowing(), normal(2, 6), {}, "the float16 logits are not finite"),
    "logit gradient": (
        diagonal(4),
        torch.tensor([[1.0, 0.9, 0.8, 0.0]]),
        {"y": [1], "losses": ["dlr"], "formats": ["float16"], "loss_scale": 6e4},
        "the float16 logit gradient is not finite",
    ),
    "gradient": (
        diagonal(3, 2e4),
        torch.tensor([[3.0, 2.0, 0.0]]),
        {"y": [1], "losses": ["cw"], "formats": ["float16"], "loss_scale": 8.0},
        "the float16 gradient is not finite",
    ),
}
RESULTS = "flat", "logits", "logit gradient", "gradient"


def measured(model, x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnmeasuredWarning)
        return fperr.measure(model, x, progress=False, **options)


@pytest.mark.parametrize(("model", "x", "options", "reason"), CASES.values(), ids=CASES)
def test_a_row_has_a_number_or_a_reason(model, x, options, reason):
    frame = measured(model, x, **options).frame
    assert (frame["delta"].isna() == frame["reason"].notna()).all()
    assert frame["reason"].dropna().unique().tolist() == [reason]
    # a reference that was computed was audited, whatever became of the row
    unknown = frame["reason"].isin([INPUT_NOT_FINITE, UNDECIDED])
    assert (frame["value_audit"][~unknown] == "confirmed").all()
    assert frame["value_audit"][unknown].isna().all()
    assert list(COLUMNS)[-3:] == ["is_certified", "value_audit", "reason"]


def test_a_reference_that_misses_its_bits_says_how_many_it_has(monkeypatch):
    """Computed with fewer bits than were asked for, and with no rung above."""
    monkeypatch.setattr("fperr.exact.engines.mpmath.GUARD_BITS", -100)
    monkeypatch.setattr("fperr.measurement.arguments.engines_from", lambda _: ("mpmath",))
    options = {"losses": ["mifpe"], "formats": ["float32"], "engine": "mpmath", "digits": 50}
    with pytest.warns(UnmeasuredWarning, match=r"certain to fewer bits|certain to \d+ of 167"):
        frame = fperr.measure(tiny_mlp(), normal(2, 6), scenarios=ONE, **options).frame
    for error, reason in zip(frame["log2_reference_error"], frame["reason"], strict=True):
        certain = int(re.fullmatch(r"the reference is certain to (\d+) of 167 bits", reason)[1])
        assert certain <= -error < certain + 1
    assert set(frame["certainty"]) == {"uncertified"}


@pytest.mark.parametrize(
    ("log2_error", "words"),
    [
        (math.inf, "0 of 50"),
        (math.nan, "0 of 50"),
        (2.0, "0 of 50"),
        (-40.9, "40 of 50"),
        (-50.0, "49 of 50"),
        (-1000.0, "49 of 50"),  # never as many as were missed
    ],
)
def test_bits_are_rounded_down(log2_error, words):
    assert too_few_bits(log2_error, 50) == f"the reference is certain to {words} bits"


@pytest.mark.parametrize(
    ("c", "word"), [(0.0, "0"), (math.inf, "infinite"), (-math.inf, "infinite"), (math.nan, "not")]
)
def test_an_unusable_scale_is_named(c, word):
    assert unusable_scale(c).startswith(f"its scale T/margin is {word}")


def test_the_fault_of_a_format_goes_before_that_of_the_reference():
    """Such a row fails whatever the reference is; the reason must say why."""
    options = {"losses": ["mifpe"], "formats": ["float16"], "scenarios": ONE}
    report = measured(overflowing(), normal(2, 6), **options)
    assert report.frame["reason"].unique().tolist() == ["the float16 logits are not finite"]
    line = report.summary().iloc[0]
    assert line["verdict"].startswith("do not trust: 2 of 2 gradients are dead or weak")
    assert line["verdict"].endswith("(2 not finite); no relative error")
    assert line["unmeasured"] == 0


def remedy_of(reason):
    (group,) = tally([reason])
    return group.remedy


def test_every_reason_has_a_remedy_and_only_an_unknown_one_has_none():
    stated = [case[-1] for case in CASES.values()] + [SCALE_CAPPED, too_few_bits(-9.0, 50)]
    for reason in [*stated, *(unusable_scale(c) for c in (0.0, math.inf, math.nan))]:
        assert "no remedy" not in remedy_of(reason)
    for fmt in fperr.formats.FORMATS.values():
        for part in ("logits", "logit gradient", "gradient"):
            assert "no remedy" not in remedy_of(not_finite(fmt, part))
    assert remedy_of("the moon is full") == "no remedy is known"


def test_reasons_that_differ_in_a_number_are_counted_together():
    groups = tally([too_few_bits(-9.0, 50), FLAT, too_few_bits(-99.0, 50), FLAT, FLAT])
    assert [(g.words, g.rows) for g in groups] == [
        (FLAT, 3),
        ("the reference is certain to fewer bits than delta needs", 2),
    ]
    (group,) = tally(2 * [too_few_bits(-9.0, 50)])
    assert group.words == "the reference is certain to 9 of 50 bits"


def test_the_remedy_for_inputs():
    x = with_a_nan()
    code = remedy_of(INPUT_NOT_FINITE).partition(": ")[2]
    left = eval(code, {"x": x})  # the text of this package
    assert len(left) == 2
    assert fperr.measure(tiny_mlp(), left).frame["delta"].notna().all()


def test_the_remedy_for_what_balls_cannot_decide():
    (engine,) = re.findall("engine='(\\w+)'", remedy_of(NOT_CERTIFIED))
    model, x, _, _ = CASES["undecided"]
    frame = fperr.measure(model, x, engine=engine).frame
    assert frame["delta"].notna().all()
    assert not (frame["certainty"] == "proved").any()  # as the remedy says


def test_the_remedy_for_bits_that_are_missed():
    (engine,) = re.findall("engine='(\\w+)'", remedy_of(too_few_bits(-9.0, 50)))
    options = {"losses": ["ce"], "formats": ["float32"], "scenarios": ONE}
    for model, x in (
        (close_classes(), normal(2, 6).abs()),
        (Then(fperr.zoo.load("fashion_standard"), lambda z: 1e5 * z).eval(), first_image()),
    ):
        assert measured(model, x, engine=engine, **options).frame["delta"].notna().all()


def first_image():
    return fperr.data.fashion_mnist_1000().x[:1]


def test_the_remedies_for_a_scale():
    text = remedy_of(unusable_scale(0.0))
    model, x, options, _ = CASES["scale"]
    for words, change in {
        "a larger T": {"losses": ["mifpe:T=1"]},
        "a format with more range": {"formats": ["float32"]},
        "stable_ce": {"losses": ["stable_ce"]},
    }.items():
        assert words in text
        frame = fperr.measure(model, x, **{**options, **change}).frame
        assert frame["delta"].notna().all(), words


def test_the_remedy_for_a_loss_that_is_undefined():
    name = remedy_of(UNDEFINED).rpartition(" ")[2]
    assert fperr.measure(diagonal(4), TIE, [0], losses=[name]).frame["delta"].notna().all()


def test_the_remedy_for_a_flat_gradient():
    assert remedy_of(FLAT) == "measure other samples"
    options = {"losses": ["mifpe"], "formats": ["float64"]}
    assert fperr.measure(flat(), normal(8, 3), **options).frame["delta"].isna().all()
    with pytest.warns(UserWarning, match="x ranges from"):
        report = fperr.measure(flat(), 1e4 * normal(8, 3), **options)
    assert report.frame["delta"].notna().any()


@pytest.mark.parametrize("case", ["logits", "logit gradient", "gradient"])
def test_the_remedy_for_a_format_that_is_not_finite(case):
    model, x, options, reason = CASES[case]
    formats = re.findall("[a-z]*float\\d+", remedy_of(reason))
    assert formats == ["bfloat16", "float32", "float64"]
    options = {**options, "formats": formats}
    assert fperr.measure(model, x, **options).frame["delta"].notna().all()


def test_the_remedy_for_a_format_is_one_with_more_range():
    ranges = {f.name: f.emax for f in fperr.formats.FORMATS.values()}
    for fmt in fperr.formats.FORMATS.values():
        text = remedy_of(not_finite(fmt, "gradient"))
        named = [name for name in ranges if re.search(rf"\b{name}\b", text)]
        assert all(ranges[name] > ranges[fmt.name] for name in named)
        assert bool(named) == (fmt.name != "float64")


def test_the_remedy_for_a_capped_scale():
    x = torch.tensor([[1.0, 1.0, 0.0]])
    capped = fperr.measure(diagonal(3), x, losses=["mifpe"], formats=["float32"], scenarios=ONE)
    verdict = capped.summary()["verdict"][0]
    assert verdict == f"not measured: {SCALE_CAPPED}, {remedy_of(SCALE_CAPPED)}"
    names = re.findall("(ce|stable_ce)\\b", remedy_of(SCALE_CAPPED).rpartition(": ")[2])
    assert names == ["ce", "stable_ce"]
    options = {"losses": names, "formats": ["float32"], "scenarios": ONE}
    free = fperr.measure(diagonal(3), x, **options).summary()
    assert free["verdict"].str.startswith("cannot tell from 1 images").all()


@pytest.mark.parametrize(("model", "x", "options", "reason"), CASES.values(), ids=CASES)
def test_a_warning_says_how_many_why_and_what_to_do(model, x, options, reason, recwarn):
    frame = fperr.measure(model, x, **options).frame
    said = [w for w in recwarn if issubclass(w.category, UnmeasuredWarning)]
    number = int(frame["delta"].isna().sum())
    if reason in [CASES[name][-1] for name in RESULTS]:
        assert said == []
        return
    (warning,) = said
    assert issubclass(warning.category, UserWarning)
    assert warning.filename == __file__
    rows = "row" if number == 1 else "rows"
    assert str(warning.message) == (
        f"{number} of {len(frame)} rows were not measured: "
        f"{reason} ({number} {rows}: {remedy_of(reason)})"
    )


def test_the_rows_of_results_are_not_in_the_warning():
    """One sample is not a number, another one overflows float16."""
    x = with_a_nan()
    with pytest.warns(UnmeasuredWarning, match="^9 of 27 rows") as said:
        frame = fperr.measure(overflowing(), x, scenarios=ONE).frame
    assert len(said) == 1
    assert "float16" not in str(said[0].message)
    assert (frame["reason"] == "the float16 logits are not finite").sum() == 6


@pytest.mark.parametrize(("model", "x", "options", "reason"), CASES.values(), ids=CASES)
def test_what_was_not_measured_never_looks_good(model, x, options, reason):
    """The rows with the reason alone: no trust, no gap, no advice to follow."""
    report = measured(model, x, **options)
    frame = report.frame[report.frame["reason"].notna()].reset_index(drop=True)
    report = fperr.Report(frame, report.provenance)
    for _, line in report.summary().iterrows():
        if line["unmeasured"]:
            assert line["unmeasured"] == line["rows"]
            assert line["reason"] == reason
            assert line["verdict"] == f"not measured: {reason}, {remedy_of(reason)}"
        else:
            assert line["verdict"].startswith(("do not trust", "cannot tell from 1 images"))
            assert pd.isna(line["reason"])
    words = in_short(frame)
    judged = report.summary()["unmeasured"].eq(0).any()
    assert not re.search(r"(?<!no loss) can be followed", words)
    bad = ("no loss can be followed", "cannot be followed", "too few")
    assert any(text in words for text in bad) if judged else "measured" in words
    if not judged:
        assert all(clause.endswith("measured") for clause in words.rstrip(".").split(". "))
    assert headline(frame) == (
        f"No gap is shown, as nothing was measured: {reason}, {remedy_of(reason)}."
    )
    for loss, fmt in frame[["loss", "format"]].drop_duplicates().itertuples(index=False):
        assert not report.is_gradient_trustworthy(loss, fmt)
    page = report.to_html()
    assert "trustworthy." not in page.partition("The rule behind")[0]
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).partition("Settings and prov")[0].split()


def test_what_is_left_out_is_said_beside_the_verdict():
    report = measured(tiny_mlp(), with_a_nan(), losses=["mifpe"], formats=["float32"])
    (verdict,) = report.summary()["verdict"]
    assert verdict.startswith("cannot tell from 2 images, about --n 59 would: none of 2 gradients")
    # one of three images in four scenarios
    assert verdict.endswith(f"; left out: 4 of 12 (4: {INPUT_NOT_FINITE})")
    whole = fperr.measure(tiny_mlp(), normal(3, 6), losses=["mifpe"], formats=["float32"])
    assert "left out" not in whole.summary()["verdict"][0]
    assert whole.summary()[["unmeasured"]].to_numpy().tolist() == [[0]]


def in_short(frame):
    """The answer in a line, as the command line prints it."""
    return " ".join(answer(verdicts(frame, Thresholds())).sentences)


def test_no_loss_is_left_out_of_the_answer():
    frame = measured(*CASES["undefined"][:2], **CASES["undefined"][2]).frame
    assert in_short(frame) == (
        "In float16, float32 and float64, 1 image is too few to tell about cw (measure about 59); "
        "dlr was not measured."
    )


def gap(worst, best):
    base = {"network": "n", "scenario": "untargeted_unsuccessful", "format": "float32"}
    base |= {"scale_capped": False, "is_sign_twin": False, "sample": 0, "label": 0}
    rows = [{**base, "loss": "ce", "delta": worst}, {**base, "loss": "mifpe", "delta": best}]
    return headline(fperr.Report.from_rows(rows, {"n": {}}).frame)


def test_a_gap_of_less_than_ten_is_none():
    assert gap(0.3, 0.0299).startswith("The widest gap: in float32 (untargeted, unsuccessful), ")
    assert gap(0.3, 0.0301).startswith("No wide gap: ")
    assert gap(0.009, 1e-7).startswith("No wide gap: ")
    assert gap(0.011, 0.0).startswith("The widest gap: ")
    assert gap(math.nan, math.nan).startswith("No gap is shown, as nothing was measured: ")


def test_a_row_without_a_reason_is_not_hidden():
    """Rows that somebody else made."""
    text = gap(math.nan, math.nan)
    assert "no reason is recorded" in text


@pytest.mark.slow
def test_the_page_lists_the_reasons():
    x = with_a_nan()
    report = measured(overflowing(), x, losses=["mifpe"], scenarios=ONE, name="net")
    text = re.sub(r"\s+", " ", report.to_html())
    assert "Rows without a relative error that is judged" in text
    left_out = f"<strong>3 of 9</strong> (counted on neither side): {INPUT_NOT_FINITE}."
    assert f"{left_out} What to do: {remedy_of(INPUT_NOT_FINITE)}." in text
    assert (
        "<strong>2 of 9</strong> (counted as failing): the float16 logits are not finite." in text
    )
    whole = fperr.measure(tiny_mlp(), normal(3, 6), losses=["mifpe"], name="net").to_html()
    assert "Rows without" not in whole


def code_of(text):
    """The functions in a message, by the name of what they are applied to."""
    found = re.findall(r"logits=lambda (\w): (.*?)(?=; all |$)", text)
    assert found
    return {name: eval(f"lambda {name}: {code}", {"torch": torch}) for name, code in found}


LINEAR = seeded(nn.Linear(6, 1))
# how a model ends, and as the message says that it should end
SHAPES = {
    "column": (lambda z: z, lambda z: z),
    "flat": (lambda z: z[:, 0], lambda z: z[:, 0]),
    "squeezed": (lambda z: z.squeeze(), lambda z: z),
}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_remedy_for_one_logit(shape, n):
    ends, should_end = SHAPES[shape]
    model, x = Then(LINEAR, ends).eval(), normal(n, 6)
    with pytest.raises(ValueError, match="K = 1 logit, but at least 2 classes") as raised:
        fperr.measure(model, x)
    assert ("leave out squeeze()" in str(raised.value)) == (shape == "squeezed")
    model, code = Then(LINEAR, should_end).eval(), code_of(str(raised.value))
    report = fperr.measure(model, x, logits=code["z"], losses=["ce"])
    assert report.frame["delta"].notna().all()
    classes = (LINEAR(x)[:, 0] > 0).long()
    rows = report.frame[report.frame["scenario"] == "untargeted_unsuccessful"]
    seen = rows[rows["format"] == "float64"].set_index("sample")["label"]
    assert seen.tolist() == classes.tolist()  # the label is the prediction there


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_remedies_for_a_sigmoid(shape, n):
    """Left out, or undone: the gradient of the network before it."""
    ends, shape = SHAPES[shape]
    x = normal(n, 6)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]") as raised:
        fperr.measure(Then(LINEAR, lambda z: ends(z.sigmoid())).eval(), x)
    code = code_of(str(raised.value))
    classes = (LINEAR(x)[:, 0] > 0).long()
    plain = Then(LINEAR, lambda z: code["z"](shape(z))).eval()
    undone = Then(LINEAR, lambda z: code["p"](shape(z.sigmoid()))).eval()
    for model in (plain, undone):
        report = fperr.measure(model, x, classes, losses=["ce"], formats=["float64"])
        assert report.frame["delta"].lt(1e-12).all()
        assert (report.frame["scenario"] == "untargeted_unsuccessful").all()
    # not undone: 0 and p always predict class 1
    wrong = Then(LINEAR, lambda z: code["z"](shape(z.sigmoid()))).eval()
    assert (wrong(x).argmax(1) == 1).all()


def test_independent_sigmoids_are_named_and_honest_logits_are_not():
    heads, x = seeded(nn.Linear(6, 3)), normal(4, 6)
    options = {"losses": ["ce"], "formats": ["float32"]}
    for change in (
        torch.sigmoid,
        nn.functional.hardsigmoid,
        lambda z: torch.stack([z[:, 0].sigmoid(), z[:, 2].sigmoid()], 1),
    ):
        model = Then(heads, change).eval()
        with pytest.warns(UserWarning, match="values of sigmoids.* leave out its sigmoid") as said:
            fperr.measure(model, x, **options)
        assert said[0].filename == __file__
        fperr.measure(model, x, accept_probabilities=True, **options)  # no warning, as it says
    fperr.measure(heads, x, **options)  # nor without the sigmoid
    honest = Then(heads, lambda z: z / 100 + 0.5).eval()
    assert ((honest(x) > 0) & (honest(x) < 1)).all()
    fperr.measure(honest, x, **options)


def test_a_sample_that_is_not_a_number_hides_no_softmax():
    x = with_a_nan()
    with pytest.raises(ValueError, match="returns probabilities, not logits"):
        fperr.measure(Then(tiny_mlp(), lambda z: z.softmax(1)).eval(), x)


def test_reasons_survive_the_file(tmp_path):
    report = measured(tiny_mlp(), with_a_nan())
    report.to_parquet(tmp_path / "m.parquet")
    again = fperr.Report.from_parquet(tmp_path / "m.parquet")
    assert again.frame["reason"].dropna().unique().tolist() == [INPUT_NOT_FINITE]
    assert not np.any(again.frame["delta"].isna() & again.frame["reason"].isna())


class UnusedBranch(nn.Module):
    """A branch that nobody takes divides by zero: its gradient is 0 * inf, for PyTorch too."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_mlp()

    def forward(self, x):
        z = self.inner(x)
        return torch.where(x[:, :1] > 100.0, z / 0.0 * 0.0, z)


@pytest.mark.parametrize("engine", ["mpmath", "ball", "double_word"])
def test_an_undefined_gradient_of_a_branch_that_is_not_taken_leaves_its_rows_unmeasured(engine):
    model, x = UnusedBranch().eval(), normal(2, 6)
    options = {"losses": ["ce"], "formats": ["float32"], "engine": engine}
    with pytest.warns(UnmeasuredWarning, match="infinite or undefined"):
        frame = fperr.measure(model, x, [0, 1], **options).frame
    assert frame["delta"].isna().all()
    assert frame["reason"].str.contains("infinite or undefined: leave the sample out").all()
    with pytest.raises(fperr.FperrError, match=r"sample 0|no operation keeps"):
        fperr.exact.gradient(model, x, torch.ones(2, 4), engine=engine)
    control = fperr.measure(tiny_mlp(), x, [0, 1], **options).frame
    assert control["delta"].notna().all()
