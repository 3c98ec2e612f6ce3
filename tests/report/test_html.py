"""The report page in a real browser, and the rule behind its verdict."""

import datetime
import itertools
import math
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import fperr
from fperr.report.answer import answer, verdicts
from fperr.report.frame import COLUMNS
from fperr.report.judging import judge
from fperr.report.numbers import number, typeset
from fperr.report.plots import Plots
from fperr.report.verdict import Thresholds
from tests.conftest import normal, tiny_mlp

CHROMIUM = shutil.which("chromium")
LOSSES = ["ce", "mifpe", "stable_ce"]


@pytest.fixture(scope="module")
def report():
    hard = tiny_mlp(seed=3)
    with torch.no_grad():
        hard[2].bias[1] += 200  # margins beyond float32: e^-200 is 0
    x = normal(5, 6)
    return fperr.Report.merged(
        [
            fperr.measure(tiny_mlp(), x, losses=LOSSES, name="easy"),
            fperr.measure(hard, x, losses=LOSSES, name="<hard> & co"),
        ]
    )


@pytest.fixture(scope="module")
def written(report):
    return report.to_html(made_on=datetime.date(2026, 1, 2))


@pytest.fixture(scope="module")
def path(written, tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "report.html"
    page.write_text(written, encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        message = "needs Debian's package chromium"
        if os.environ.get("FPERR_REQUIRE_CHROMIUM"):
            pytest.fail(message)
        pytest.skip(message)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = p.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


def opened(browser, path, width, scheme="light"):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.messages = []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.on("request", lambda request: page.messages.append(request.url))
    page.goto(path.as_uri())
    page.messages = [m for m in page.messages if m != path.as_uri() and not m.startswith("data:")]
    return page


UNFOLD = "document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.mark.parametrize("width", [390, 1600])
def test_nothing_is_fetched_nothing_overflows_everything_shows(browser, path, width):
    page = opened(browser, path, width)
    assert page.messages == []
    for unfold in ("0", UNFOLD):
        page.evaluate(unfold)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.locator("img")
    bounded = images.count() - 2 * (3 * 2 + len(LOSSES))  # a panel for each format and network
    assert bounded == 2 * 3
    for i in range(images.count()):
        assert images.nth(i).evaluate("i => i.complete && i.naturalWidth >= 800 && i.width > 200")
        alt = images.nth(i).get_attribute("alt")
        assert "median" in alt
        assert re.search(r"\d", alt)
    # the check of the width notices a table that is too wide for its page
    page.add_style_tag(content=".scroll { overflow: visible !important; width: 2000px; }")
    assert page.evaluate("document.documentElement.scrollWidth") > width


def test_the_page_has_one_outline(browser, path):
    page = opened(browser, path, 1600)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("[...document.querySelectorAll('th')].every(t => t.scope)")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    targets = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    assert targets
    assert set(targets) <= set(ids)
    headings = [h.inner_text().removesuffix(" #") for h in page.locator("main h2").all()]
    assert headings[:2] == ["The answer", "Each loss in each format"]
    names = [h.inner_text() for h in page.locator(".answer h3").all()]
    assert names == ["easy", "<hard> & co"]


def test_tables_sort_by_mouse_and_keyboard(browser, path):
    page = opened(browser, path, 1600)
    table = page.locator("table.sortable").nth(1)
    column = [b.inner_text() for b in table.locator("th button").all()].index("delta median")

    def values():
        cells = table.locator(f"tbody tr td:nth-child({column + 1})").all()
        return [float(cell.get_attribute("data-value")) for cell in cells]

    before = values()
    button = table.locator("th button").nth(column)
    button.click()
    assert values() == sorted(before) != before
    assert table.locator("th").nth(column).get_attribute("aria-sort") == "ascending"
    button.focus()
    page.keyboard.press("Enter")
    assert values() == sorted(before, reverse=True)
    assert table.locator("th").nth(column).get_attribute("aria-sort") == "descending"


def test_a_table_is_a_file_of_values(browser, path, report):
    page = opened(browser, path, 1600)
    with page.expect_download() as download:
        page.locator("a.file").nth(1).click()
    content = pd.read_csv(download.value.path())
    assert download.value.suggested_filename == "quartiles_and_failures_by_scenario.csv"
    summary = report.summary(("network", "scenario", "loss", "format"))
    independent = report.frame[~report.frame["is_sign_twin"]]
    assert len(content) == len(
        independent.drop_duplicates(["network", "scenario", "loss", "format"])
    )
    assert set(content["delta_median"].dropna()) <= set(summary["delta_median"].dropna())


def luminance(colour):
    """That of WCAG, from red, green and blue in [0, 255]."""
    rgb = np.asarray(colour, dtype=float) / 255
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


# of the elements with text of their own
CONTRASTS = """[...document.querySelectorAll('body *')].filter(
  e => [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim())
).map(e => {
  const over = [];
  for (let p = e; p; p = p.parentElement) over.push(getComputedStyle(p).backgroundColor);
  return [getComputedStyle(e).color, ...over];
})"""


def least_contrast(page):
    """The least contrast between an element's colour and what lies below it."""
    least = np.inf
    for colour, *over in {tuple(each) for each in page.evaluate(CONTRASTS)}:
        ground = np.zeros(3)
        for layer in reversed(over):
            numbers = [float(v) for v in re.findall(r"[\d.]+", layer)]
            opacity = numbers[3] if len(numbers) > 3 else 1.0
            ground = opacity * np.array(numbers[:3]) + (1 - opacity) * ground
        text = luminance([float(v) for v in re.findall(r"[\d.]+", colour)[:3]])
        low, high = sorted((text, luminance(ground)))
        least = min(least, (high + 0.05) / (low + 0.05))
    return least


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser, path, scheme):
    """WCAG AA: 4.5 between every text's colour and its ground, in both colour schemes."""
    page = opened(browser, path, 1600, scheme)
    paper = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')")
    assert paper.strip() == ("#fff" if scheme == "light" else "#1a1a1a")
    assert least_contrast(page) >= 4.5
    page.add_style_tag(content=".soft { color: #808080 !important; }")
    assert least_contrast(page) < 4.5


def test_pictures_are_readable_in_the_dark(browser, path):
    """Their ground is transparent or inverted: their darkest ink is light there."""
    filters = {
        scheme: opened(browser, path, 1600, scheme).evaluate(
            "getComputedStyle(document.querySelector('figure img')).filter"
        )
        for scheme in ("light", "dark")
    }
    assert filters == {"light": "none", "dark": "invert(0.9) hue-rotate(180deg)"}


def test_the_page_prints(browser, path, tmp_path):
    page = opened(browser, path, 1600, "dark")
    page.emulate_media(media="print")
    computed = "(s, p) => getComputedStyle(document.querySelector(s))[p]"
    style = lambda selector, name: page.evaluate(f"({computed})('{selector}', '{name}')")  # noqa: E731
    assert style("body", "backgroundColor") == "rgb(255, 255, 255)"
    assert style("td.number", "whiteSpace") == "nowrap"
    assert style("thead", "breakInside") == style("tr", "breakInside") == "avoid"
    height = "s => document.querySelector(s).getBoundingClientRect().height"
    assert page.evaluate(height, "details:has(.sentences)") > 100  # unfolded
    assert page.evaluate(height, "details.raw") < 60  # folded: its summary alone
    page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 50_000


def test_the_verdict_comes_first_and_is_plain(written):
    text = written
    answer_at, matrix_at, picture_at = map(text.index, ('id="answer"', 'id="matrix"', "<img"))
    assert answer_at < text.index("too few to tell about") < matrix_at
    assert matrix_at < text.index("do not trust") < picture_at
    assert text.count("succeed all the same") == 1
    assert "Cross-entropy (ce) in float32: do not trust" in text
    assert "Stable cross-entropy (stable_ce) in float32: cannot tell" in text
    # pictures are base64, in which any four letters may stand
    words = re.sub(r"base64,[^\"]*", "", text)
    assert "http" not in words.replace("http-equiv", "")
    assert "&lt;hard&gt; &amp; co" in text
    assert "<hard>" not in text


@pytest.mark.slow
def test_the_page_is_rebuilt_from_the_file(report, tmp_path):
    report.to_parquet(tmp_path / "m.parquet")
    again = fperr.Report.from_parquet(tmp_path / "m.parquet").to_html()
    without_pictures = [re.sub(r"base64,[^\"]*", "", t) for t in (again, report.to_html())]
    assert without_pictures[0] == without_pictures[1]


def test_the_head_says_what_was_measured(report, written):
    head = written.partition("<main>")[0]
    assert '<time datetime="2026-01-02">2 January 2026</time>' in head
    assert f"fperr {report.provenance['easy']['versions']['fperr']}" in head
    parameters = sum(p.numel() for p in tiny_mlp().parameters())
    assert f"Sequential, {parameters} parameters, input 6, 5 images" in head
    assert "fperr.measure(model, x, losses=[&#34;ce&#34;, " in head
    assert "scenarios=" in head  # no labels were given
    # an older report says less, and nothing false
    older = {
        name: {**p, "model": {"classes": 4}, "versions": {}}
        for name, p in report.provenance.items()
    }
    text = fperr.Report(report.frame, older).to_html()
    assert "parameters" not in text.partition("<main>")[0]


@pytest.mark.slow
def test_an_attribution_stands_in_the_answer(report, written):
    section = fperr.report.html.AttributionSection(
        "A sentence <b>.", [], "PGD", "", "", ["a"], [["b"]], {"network": "easy"}
    )
    text = report.to_html(attributions={"easy": section})
    assert (
        text.index('id="answer"') < text.index("A sentence &lt;b&gt;.") < text.index('id="matrix"')
    )
    assert "easy: what an attack loses" in text
    assert "A sentence" not in written


def test_numbers_are_typeset():
    assert typeset("a 1.8e-07, 1e+05; x1e-5, 2e-3f").replace("\u202f", " ") == (
        "a 1.8 × 10⁻⁷, 10⁵; x1e-5, 2e-3f"
    )
    assert typeset("-1.5e-07") == "−1.5\u202f×\u202f10⁻⁷"
    assert number(float("nan")) == "–"
    assert number(0.0) == "0"


def test_no_number_of_the_page_has_an_exponent_to_break_at(written):
    text = re.sub(r"base64,[^\"]*|data-value=\"[^\"]*\"", "", written)
    shown = text.partition("Settings and provenance")[0]
    assert re.search(r"10⁻", shown)
    assert not re.search(r"\d(\.\d+)?e-\d", shown)


def rows(n=100, **values):
    """Rows of one scenario with accurate gradients, changed by `values`."""
    base = {
        "scenario": "untargeted_unsuccessful",
        "delta": 1e-7,
        "sign_error_rate": 0.0,
        "step_gain": 1.0,
        "logit_delta": 1e-7,
        "p_underflow_rate": 0.0,
        "activation_flips": 0,
        "pooling_flips": 0,
        "tie_flips": 0,
        "is_finite": True,
        "is_dead": False,
        "scale_capped": False,
        "is_defined": True,
        "reason": None,
    }
    frame = pd.DataFrame([base] * n).astype({k: COLUMNS[k] for k in base})
    for name, (count, value) in values.items():
        frame.loc[: count - 1, name] = value
    return frame


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"step_gain": (20, 0.49)}, "(20 weak: 20 by the network, which none mends)"),
        (
            {"step_gain": (20, 0.4), "logit_delta": (20, 0.5)},
            "(20 weak: 20 by cancellation, which another loss mends)",
        ),
        (
            {"step_gain": (20, 0.4), "logit_delta": (20, 0.5), "p_underflow_rate": (5, 0.9)},
            "20 weak: 5 by underflow, 15 by cancellation, which another loss mends)",
        ),
        (
            {"step_gain": (20, 0.4), "tie_flips": (12, 3), "activation_flips": (8, 1)},
            "(20 weak: 4 by ties, 8 by other branches, 8 by the network, which none mends)",
        ),
        (
            {"is_dead": (20, True), "delta": (20, 1.0), "step_gain": (20, 0.0)},
            "(20 exactly zero: 20 by underflow, which another loss mends)",
        ),
        ({"is_finite": (20, False), "delta": (20, np.nan)}, "(20 not finite)"),
    ],
)
def test_the_rule_catches_each_fault_and_names_its_cause(values, reason):
    verdict = judge(rows(**values), Thresholds())
    assert verdict.state == "do not trust"
    assert reason in verdict.sentence
    assert (
        "20 of 100 gradients are dead or weak while an untargeted attack has n" in verdict.sentence
    )


def test_the_rule_lets_good_rows_pass_and_can_be_set():
    assert judge(rows(), Thresholds()).is_trustworthy
    # large errors and wrong signs of small components cost a step nothing
    costless = rows(delta=(100, 0.9), sign_error_rate=(100, 0.3), step_gain=(100, 0.51))
    assert judge(costless, Thresholds()).is_trustworthy
    assert judge(costless, Thresholds(step_gain=0.6)).state == "do not trust"
    assert judge(costless, Thresholds(delta=0.5)).state == "do not trust"
    assert judge(costless, Thresholds(sign_error_rate=0.2)).state == "do not trust"
    wrong = rows(step_gain=(10, 0.2))
    assert judge(wrong, Thresholds(share=0.2)).is_trustworthy
    assert "beyond the thresholds" in judge(costless, Thresholds(delta=0.5)).sentence


GOOD, BAD, OPEN = rows(), rows(step_gain=(50, 0.1)), rows(30)
OPEN_WORDS = "30 images are too few to tell about {} (measure about 59)"


@pytest.mark.parametrize(
    ("cells", "sentences"),
    [
        (
            {"ce": {"float16": BAD, "float32": GOOD}, "mifpe": {"float16": GOOD, "float32": GOOD}},
            (
                "In float16, only mifpe can be followed; ce cannot.",
                "In float32, every loss can be followed.",
            ),
        ),
        (
            {"ce": {"float16": BAD, "float32": BAD}, "mifpe": {"float16": BAD, "float32": BAD}},
            ("In float16 and float32, no loss can be followed.",),
        ),
        (
            {"ce": {"float16": BAD}, "mifpe": {"float16": OPEN}},
            (f"In float16, ce cannot be followed; {OPEN_WORDS.format('mifpe')}.",),
        ),
        (
            {"ce": {"float16": OPEN}, "mifpe": {"float16": OPEN}},
            (f"In float16, {OPEN_WORDS.format('any loss')}.",),
        ),
        (
            {"ce": {"float16": GOOD, "float32": rows(delta=(100, np.nan))}},
            ("In float16, ce can be followed.", "In float32, ce was not measured."),
        ),
    ],
)
def test_the_answer_groups_formats(cells, sentences):
    frames = [
        cell.assign(loss=loss, format=fmt, sample=range(len(cell)))
        for loss, by_format in cells.items()
        for fmt, cell in by_format.items()
    ]
    said = answer(verdicts(pd.concat(frames, ignore_index=True), Thresholds()))
    assert said.sentences == sentences
    is_mended = any("only mifpe" in each for each in sentences)
    assert said.remedy.startswith("Use mifpe: ") == is_mended


def test_few_images_do_not_tell():
    """0.95**59 < 0.05 < 0.95**58: if 5 % fail, none of 59 does so in fewer than 1 of 20 tries."""
    assert judge(rows(59), Thresholds()).state == "trustworthy"
    verdict = judge(rows(58), Thresholds())
    assert verdict.state == "cannot tell"
    assert verdict.sentence.startswith(
        "cannot tell from 58 images, about --n 59 would: none of 58 "
    )
    some = judge(rows(40, step_gain=(4, 0.1)), Thresholds())
    assert (some.state, some.needed) == ("cannot tell", 99)
    # one of 70: 31 would do if the count were normally distributed
    one = judge(rows(70, step_gain=(1, 0.1)), Thresholds())
    assert one.state == "cannot tell"
    assert 70 < one.needed < 200
    failing = math.ceil(one.needed / 70)
    enough = judge(rows(one.needed, step_gain=(failing, 0.1)), Thresholds())
    assert enough.state == "trustworthy"
    # as many as it says do tell, a tenth of which fail; and half as many do not
    assert judge(rows(140, step_gain=(14, 0.1)), Thresholds()).state == "do not trust"
    assert judge(rows(50, step_gain=(5, 0.1)), Thresholds()).state == "cannot tell"
    assert judge(rows(40, step_gain=(2, 0.1)), Thresholds()).needed is None  # as many as allowed


def test_of_scenarios_that_fail_as_often_the_largest_speaks():
    few = rows(70).assign(scenario="untargeted_successful")
    both = pd.concat([few, rows()], ignore_index=True)
    verdict = judge(both, Thresholds())
    assert (verdict.rows, verdict.scenario) == (100, "untargeted_unsuccessful")
    worse = pd.concat([few.assign(step_gain=0.1), rows()], ignore_index=True)
    assert judge(worse, Thresholds()).scenario == "untargeted_successful"


def test_only_images_that_are_still_to_be_moved_speak_for_a_loss():
    """Nine misclassified images are no evidence about an attack on the other fifty."""
    moved = rows(9).assign(scenario="untargeted_successful")
    both = pd.concat([moved, rows(50)], ignore_index=True).assign(sample=range(59))
    verdict = judge(both, Thresholds())
    assert (verdict.state, verdict.images, verdict.scenario) == (
        "cannot tell", 50, "untargeted_unsuccessful",
    )  # fmt: skip
    # 59 of those are needed, of which 50 of 59 images are one
    assert verdict.needed == math.ceil(59 * 59 / 50)
    enough = pd.concat([moved, rows(59)], ignore_index=True).assign(sample=range(68))
    assert judge(enough, Thresholds()).state == "trustworthy"
    # they do speak against it, and the sentence has those that do not show it either
    enough.loc[:1, "step_gain"] = 0.1
    said = judge(enough, Thresholds())
    assert said.state == "trustworthy"
    assert "; 2 of 9 once an untargeted attack has succeeded; relative error" in said.sentence
    enough.loc[:8, "step_gain"] = 0.1
    assert judge(enough, Thresholds()).state == "do not trust"
    # a scenario that was asked for alone is judged
    alone = judge(rows(59).assign(scenario="untargeted_successful"), Thresholds())
    assert (alone.state, alone.scenario) == ("trustworthy", "untargeted_successful")


def test_every_scenario_that_is_still_to_succeed_must_hold():
    """Of all four scenarios the two of unsuccessful attacks decide, and the worse of them."""
    one, other = rows(60), rows(60, step_gain=(1, 0.1)).assign(scenario="targeted_unsuccessful")
    both = pd.concat([one, other], ignore_index=True).assign(sample=[*range(60), *range(60)])
    verdict = judge(both, Thresholds())
    assert (verdict.state, verdict.scenario, verdict.images) == (
        "cannot tell", "targeted_unsuccessful", 60,
    )  # fmt: skip
    assert (verdict.failing_images, verdict.needed) == (1, judge(other, Thresholds()).needed)
    assert judge(both.assign(step_gain=1.0), Thresholds()).state == "trustworthy"
    # an image counts once, and fails if any of its rows does
    twice = pd.concat([rows(30), rows(30)]).assign(sample=[*range(30), *range(30)])
    twice = twice.reset_index(drop=True)
    assert judge(twice, Thresholds()).images == 30
    twice.loc[[0, 31], "step_gain"] = 0.1
    assert judge(twice, Thresholds()).failing_images == 2


def test_a_summary_agrees_with_the_verdicts_on_scenarios_that_are_twins():
    """The twin of a targeted attack's gradient is left out of the numbers, not of the verdict."""
    report = fperr.measure(tiny_mlp(), normal(60, 6), losses=["ce"], formats=["float16"])
    (said,) = report.summary()["verdict"]
    assert said == report.verdicts("ce", "float16")["Sequential"].sentence


def test_capped_and_flat_rows_are_not_judged():
    capped = rows(delta=(30, 1.0), step_gain=(30, 0.0), scale_capped=(30, True))
    assert judge(capped, Thresholds()).is_trustworthy
    flat = judge(rows(delta=(100, np.nan)), Thresholds())
    assert flat.state == "not measured"
    assert flat.sentence.startswith("not measured")


def test_faults_in_the_data_are_not_the_losss():
    """No reference (an input that is not finite), or no gradient (DLR's denominator is 0)."""
    broken = {"is_finite": (20, False), "delta": (20, np.nan)}
    assert judge(rows(**broken, is_defined=(20, pd.NA)), Thresholds()).is_trustworthy
    assert judge(rows(**broken, is_defined=(20, False)), Thresholds()).is_trustworthy
    assert judge(rows(**broken), Thresholds()).state == "do not trust"


def test_how_little_a_few_images_say():
    sentence = judge(rows(10), Thresholds()).sentence
    # 0.741**10 = 0.05: with a failing share of 26 %, none of 10 fails in 1 of 20 tries
    assert "(at most 26 % of all)" in sentence
    assert "none of 10 gradients is dead or weak while an untargeted attack has not s" in sentence


def test_one_bad_scenario_is_enough():
    good, bad = rows(), rows(10, step_gain=(10, 0.0))
    bad["scenario"] = "untargeted_successful"
    verdict = judge(pd.concat([good, good, good, bad], ignore_index=True), Thresholds())
    assert verdict.state == "do not trust"
    assert verdict.scenario == "untargeted_successful"
    assert verdict.rows == 10


def test_is_gradient_trustworthy(report):
    states = {v.state for v in report.verdicts("stable_ce", "float32").values()}
    assert states == {"cannot tell"}
    assert not report.is_gradient_trustworthy("stable_ce", "float32")
    assert report.verdicts("ce", "float32")["<hard> & co"].state == "do not trust"
    assert not report.is_gradient_trustworthy("ce", "float32")
    many = fperr.measure(tiny_mlp(), normal(60, 6), losses=["stable_ce"], formats=["float32"])
    assert many.is_gradient_trustworthy("stable_ce", "float32")
    with pytest.raises(ValueError, match="dlr in float32 was not measured: ce in float16"):
        report.is_gradient_trustworthy("dlr", "float32")


def test_networks_in_one_report_need_names():
    report = fperr.measure(tiny_mlp(), normal(1, 6), losses=["ce"], formats=["float32"])
    with pytest.raises(ValueError, match="networks must have different names"):
        fperr.Report.merged([report, report])


def test_dots_of_broken_ties_are_hollow():
    report = fperr.measure(tiny_mlp(), normal(4, 6), losses=["ce"], formats=["float32"])

    def dots():
        (axis, *_) = report.plot.relative_error().axes
        paths = [c.get_paths()[0].vertices.shape[0] for c in axis.collections if len(c.get_paths())]
        return paths, sum(len(c.get_offsets()) for c in axis.collections)

    before, number = dots()
    report.frame["tie_flips"] = 0
    report.frame.loc[0, "tie_flips"] = 2
    after, same_number = dots()
    assert number == same_number
    assert len(set(after)) > len(set(before)) == 1  # another marker


def test_zeros_are_crosses_with_a_count_and_thresholds_are_lines():
    report = fperr.measure(tiny_mlp(), normal(4, 6), losses=["ce"], formats=["float32"])

    def drawn(plots, name):
        (axis, *_) = getattr(plots, name)().axes
        heights = [float(line.get_ydata()[0]) for line in axis.get_lines()]
        return [text.get_text() for text in axis.texts], heights

    texts, heights = drawn(report.plot, "step_gain")
    assert texts == ["threshold 0.5"]
    assert 0.5 in heights
    texts, heights = drawn(report.plot, "relative_error")
    assert texts == ["u"]
    assert 2.0**-24 in heights
    strict = Plots(report.frame, Thresholds(delta=1e-3))
    texts, heights = drawn(strict, "relative_error")
    assert "threshold 0.001" in texts
    assert 1e-3 in heights
    report.frame.loc[report.frame.index[:1], ["is_dead", "delta", "step_gain"]] = [True, 1.0, 0.0]
    assert drawn(report.plot, "relative_error")[0] == ["u", "1"]
    assert drawn(report.plot, "step_gain")[0] == ["threshold 0.5", "1"]
    page = report.to_html()
    assert "Exactly zero: 1 of ce in float32." in page
    assert "A cross is a gradient that is exactly zero" in page


def test_figures_are_as_wide_as_a_page_and_have_one_legend(report):
    for name in ("step_gain", "relative_error", "sign_errors", "stages", "bounds"):
        figure = getattr(report.plot, name)()
        assert figure.get_figwidth() <= 9
        assert len(figure.legends) == 1
