"""The proved bounds: they hold, they are tight, and nothing in them is superfluous."""

import math
from dataclasses import fields, replace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fperr import bounds, data, formats, zoo
from fperr.bounds import cross_entropy, kernels, stable
from fperr.bounds.kernels import DOCUMENTED, KERNELS
from fperr.bounds.roundings import half_ulp
from fperr.errors import ModelError
from fperr.losses import Context, loss_named
from fperr.theory import format_aware
from fperr.theory.scaling import t_star
from fperr.validation import falsify, logit_gradients, summary
from fperr.validation.falsification import trial_columns
from fperr.validation.hill_climbing import climb
from fperr.validation.trial_logits import KINDS, TrialLogits, draw
from tests.conftest import normal
from tests.makers import kernel_model

FORMATS = ("float16", "bfloat16", "float32", "float64")


@pytest.fixture(scope="module")
def saturated_logits():
    with torch.no_grad():
        return zoo.load("fashion_saturated")(data.fashion_mnist_1000().x[:500]).double()


@pytest.fixture(scope="module", params=[1_500, pytest.param(20_000, marks=pytest.mark.slow)])
def cases(request):
    return request.param


@pytest.fixture(scope="module")
def trials(cases, saturated_logits):
    return falsify(FORMATS, cases, logits=saturated_logits, accuracy=DOCUMENTED)


def test_no_case_violates_the_bound(trials, cases):
    assert (trials.groupby("format", observed=True).size() >= cases).all()
    assert (trials["ratio"] <= 1).all()
    assert set(trials["K"]) == {2, 3, 5, 10, 30, 100, 1000}
    assert set(trials["kind"]) == {
        "normal",
        "heavy-tailed",
        "near ties",
        "common offset",
        "real",
    }
    found = summary.table(trials)
    is_proved = found["bound"].str.startswith("proved")
    assert found.loc[is_proved, "violations"].sum() == 0
    assert found.loc[~is_proved, "violations"].sum() > 0
    assert found.loc[found["bound"] == "proved, by component", "cases"].sum() == len(trials)
    assert set(found["scenario"]) == {
        f"{a}_{b}" for a in ("untargeted", "targeted") for b in ("successful", "unsuccessful")
    }


def test_the_search_gets_near_the_bound(trials):
    worst = trials[trials["is_searched"]].groupby("format", observed=True)["ratio"].max()
    assert (worst > 0.95).all()


def plain_cases(fmt, K, logits):
    """TrialLogits of plain cross-entropy, of every kind."""
    generator = torch.Generator().manual_seed(0)
    kinds = [*KINDS, logits] if logits.shape[1] == K else [*KINDS]
    batches = [draw(kind, 400, K, fmt, generator) for kind in kinds for _ in range(4)]
    ones = torch.ones(400).double()
    return [replace(b, c=ones, targeted=torch.zeros(400).bool()) for b in batches]


def tightness(batches, fmt, kernel):
    """The median of bound/error, of PyTorch's own kernels."""
    frame = pd.concat([trial_columns(batch, fmt, kernel, DOCUMENTED) for batch in batches])
    table = summary.tightness(frame.assign(format=fmt.name, is_searched=False))
    return table["bound/error"].item()


def largest_tightness(batches, fmt):
    """What that median is at most: the worst of the roundings over what they do to nearest."""
    ratios = []
    for batch in batches:
        error, size = kernel_model.nearest_error(batch, fmt)
        largest = kernel_model.largest_error(batch, fmt)
        largest, error, size = (t.norm(dim=1) for t in (largest, error, size))
        ratios.append((largest / error)[(largest < size) & (error > 0)])
    ratio = torch.cat(ratios)
    return ratio.quantile(0.5 + 4 / math.sqrt(2 * len(ratio))).item()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("K", [2, 10, 30])
def test_the_bound_is_tight(name, K, saturated_logits):
    """Bound/error, in the median, is no more than the kernel's list of roundings entails.

    What n roundings do at random is a fraction of what they can do together, which depends on n,
    on their weights and on the logits: no number is right for all K. So the kernel is modelled
    from its list. W is its error with every rounding at its largest and all of them in one
    direction; half an ulp of the whole sum for each addition, for the bound is one for any order.
    E is its error with every rounding to nearest, in the most accurate kernel that fits the list:
    correctly rounded exp and log, pairwise sums, a fused last product. Kernels with vectors of any
    width, and with another exp, err as much or more: the median of bound/error is at most that of
    W/E. Neither W nor E calls the bound, or a kernel whose bits depend on the CPU.

    What chance adds: the share of n cases that lie below a median has a standard deviation of
    1/(2 sqrt n), and a difference between two such shares of 1/sqrt(2n). Four of these are
    allowed: the limit is the quantile 1/2 + 4/sqrt(2n) of W/E.

    Control: with all counts half as large again, the bound is not tight.
    """
    fmt = formats.format_named(name)
    batches = plain_cases(fmt, K, saturated_logits)
    limit = largest_tightness(batches, fmt)
    kernel = KERNELS["cpu"]
    assert tightness(batches, fmt, kernel) <= limit
    counts = {f.name: 1.5 * getattr(kernel, f.name) for f in fields(kernel) if f.name != "name"}
    assert tightness(batches, fmt, replace(kernel, **counts)) > limit


def test_the_papers_bound_fails_where_cancellation_rules(trials):
    fails = (trials["paper_u"] > 1).groupby(trials["format"], observed=True).mean()
    assert (fails > 0.01).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_strided_kernels_have_their_own_bound(name):
    def strided(cases):
        return logit_gradients.pytorch_gradient(cases, strided=True)

    options = {"accuracy": DOCUMENTED, "computed": strided}
    assert (falsify([name], 1000, kernel="cpu_strided", **options)["ratio"] <= 1).all()
    # the kernel for the last dimension rounds the sum and its logarithm, too
    wrong = falsify([name], 1000, kernel="cpu_strided", accuracy=DOCUMENTED)
    assert (wrong["ratio"] > 1).any()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("factor", [0.999, 1.001])
def test_an_error_planted_beside_the_bound_is_reported_above_it_only(name, factor):
    """In float64, so that no rounding moves it; float64 itself has no finer format."""
    fmt = formats.format_named(name)

    def planted(cases):
        wide = replace(cases, z=cases.z.double())
        v = logit_gradients.pytorch_gradient(wide)
        found = cross_entropy.enclosed(
            cases.z,
            cases.label,
            cases.c,
            fmt,
            upstream=cases.upstream,
            shifted=cases.is_shifted,
            accuracy=DOCUMENTED,
        )
        return v + factor * found.error

    found = falsify([name], 500, accuracy=DOCUMENTED, computed=planted)
    assert (found["ratio"] > 1).mean() == (1 if factor > 1 else 0)


TERMS = [f.name for f in fields(kernels.Kernel) if f.name not in ("name", "log")]
HALF_ONLY = ("store_sum", "store_log", "store_output", "store_gradient")


def cases_for(term, fmt, generator):
    """Logits at which the step that the term stands for matters."""
    K = 2
    drawn = draw(
        "common offset" if term in ("scale", "shift") else "normal", 3000, K, fmt, generator
    )
    first = drawn.z.argmax(1)
    label = first if term in ("add", "log", "store_sum", "store_log") else 1 - first
    upstream = 1 / 7 if term == "product" else 1.0
    c = drawn.c if term in ("scale", "rescale") else torch.ones(len(drawn)).double()
    z = drawn.z
    if term in ("exp", "product", "subtract", "underflow", "store_output", "output"):
        far = {"underflow": 105.0 if fmt.name == "float32" else 17.0}.get(term, 12.0)
        apart = far * (0.5 + torch.rand(len(z), generator=generator))
        z = torch.stack([torch.zeros(len(z)), -apart], 1).to(fmt.dtype)
        label = torch.zeros(len(z), dtype=torch.int64) if term != "subtract" else label * 0 + 1
    sign = torch.zeros(len(z), dtype=torch.bool)
    return TrialLogits(
        z, label, c, sign, float(torch.tensor(upstream, dtype=fmt.dtype)), is_shifted=False
    )


@pytest.mark.parametrize("term", TERMS)
def test_every_term_of_the_bound_is_needed(term):
    """Without it, the search finds a gradient whose error exceeds what is left."""
    fmt = formats.format_named("float16" if term in HALF_ONLY else "float32")
    whole, less = KERNELS["cpu"], replace(KERNELS["cpu"], **{term: 0.0})
    generator = torch.Generator().manual_seed(1)

    def ratio(cases, kernel):
        error, _ = logit_gradients.absolute_error(cases, logit_gradients.pytorch_gradient(cases))
        bound = cross_entropy.enclosed(
            cases.z, cases.label, cases.c, fmt, kernel=kernel, upstream=cases.upstream,
            accuracy=DOCUMENTED,
        ).error  # fmt: skip
        return torch.where(error > 0, error / bound, 0.0).amax(1)

    start = cases_for(term, fmt, generator)
    best = ratio(start, less).argsort(descending=True)[:400]
    start = start.select(best)
    found = climb(start, lambda c: ratio(c, less), fmt, 200, generator)
    assert ratio(found, less).max() > 1
    assert ratio(found, whole).max() <= 1


def test_the_logarithm_is_needed():
    """Where all classes tie, nothing else rounds but the last exponential."""
    without = replace(KERNELS["cpu"], log=0.0)
    exceeded = []
    for K in range(2, 300):
        z, label = torch.zeros(1, K), torch.tensor([0])
        cases = TrialLogits(z, label, torch.ones(1).double(), torch.tensor([False]), 1.0, False)
        error, _ = logit_gradients.absolute_error(cases, logit_gradients.pytorch_gradient(cases))
        assert (error <= bounds.logit_gradient(z, label, accuracy=DOCUMENTED)).all()
        less = bounds.logit_gradient(z, label, accuracy=DOCUMENTED, kernel=without)
        exceeded.append(bool((error > less).any()))
    assert sum(exceeded) > 10


def test_the_bound_stops_at_what_is_possible():
    """Logits near 3,000 in float16, scaled by 3.3: rounding alone would allow anything."""
    generator = torch.Generator().manual_seed(0)
    z = (2900 + 2 * torch.randint(0, 4, (500, 3), generator=generator)).half()
    c = float(torch.tensor(3.3).half())
    found = cross_entropy.enclosed(z, torch.zeros(500, dtype=torch.int64), c)
    assert found.is_capped.any()
    assert not found.is_capped.all()
    assert found.error.max() <= c * 1.01
    assert found.error[found.is_capped].min() >= c / 2


def test_logits_that_scaling_makes_equal():
    """Neighbours in bfloat16 whose multiples round to one number: e^-1e18 is computed as 1.

    Found by the search, when the bound still took the exponential of a known underflow for 0.
    """
    significand = torch.arange(128.0, 255.0)
    first, c = torch.meshgrid(significand, significand, indexing="ij")
    z = torch.stack([first.ravel() + 1, first.ravel(), first.ravel() - 40], 1).bfloat16()
    c = c.ravel().double() * 2.0**54
    label = torch.zeros(len(c), dtype=torch.int64)
    cases = TrialLogits(z, label, c, torch.zeros(len(c), dtype=torch.bool), 1.0, is_shifted=False)
    found = logit_gradients.pytorch_gradient(cases)
    assert (found[:, 1].double().abs() == c / 2).any()
    error, _ = logit_gradients.absolute_error(cases, found)
    assert error.max() >= 2.0**60
    assert (error <= bounds.logit_gradient(z, label, c, accuracy=DOCUMENTED)).all()


def test_rounding_half_an_ulp():
    sizes = torch.tensor([0.0, 1.0, 1.5, 2.0, 2.0**-140, 2.0**-149]).double()
    expected = [2.0**-150, 2.0**-24, 2.0**-24, 2.0**-23, 2.0**-150, 2.0**-150]
    assert half_ulp(sizes, formats.FLOAT32).tolist() == expected


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"logits": normal(2, 3)[0]}, r"logits must be \(batch, K\)"),
        ({"labels": torch.tensor([0, 3])}, "from 0 to 2, got values from 0 to 3"),
        ({"labels": torch.tensor([0, 1], dtype=torch.int32)}, "int64"),
        ({"c": 0.1}, "round it first"),
        ({"c": torch.ones(3)}, "number or"),
        ({"c": math.inf}, "finite"),
        ({"upstream": 1 / 3}, "upstream must be held"),
        ({"upstream": 0.0}, "other than 0"),
        ({"upstream": 2.0**100, "c": 2.0**60}, "overflows"),
        ({"c": -1.0}, "positive"),
        ({"format": "float16"}, "round them first"),
        ({"logits": torch.full((2, 3), math.nan)}, "finite"),
        ({"c": 2.0**126}, "quarter"),
        ({"kernel": "gpu"}, "cpu, cpu_strided, cuda"),
    ],
)
def test_bad_input_says_what_to_do(change, match):
    arguments = {"logits": normal(2, 3), "labels": torch.tensor([0, 1]), "c": 1.0, **change}
    with pytest.raises(ValueError, match=match):
        bounds.logit_gradient(**arguments)


def test_targeted_and_untargeted_share_a_bound():
    z, label = normal(5, 4), torch.arange(5) % 4
    plain = bounds.logit_gradient(z, label)
    assert torch.equal(plain, bounds.logit_gradient(z, label, targeted=True))
    assert plain.shape == z.shape
    assert plain.dtype == torch.float64


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("upstream", [1.0, 1024.0, 1 / 7])
def test_stable_cross_entropy_is_within_its_bounds(name, upstream):
    fmt = formats.format_named(name)
    generator = torch.Generator().manual_seed(0)
    a = float(torch.tensor(upstream, dtype=fmt.dtype))
    for K in (2, 3, 10, 100, 1000):
        for kind in ("normal", "heavy-tailed", "common offset", "near ties"):
            cases = draw(kind, min(300, 60_000 // K), K, fmt, generator)
            leaf = cases.z.clone().requires_grad_()
            loss = loss_named("stable_ce")(leaf, cases.label, Context()).sum() * a
            (v,) = torch.autograd.grad(loss, leaf)
            mine = torch.zeros_like(v, dtype=torch.bool).scatter(
                1, cases.label[:, None], value=True
            )
            true = stable_true(cases.z, mine) * a
            apart = (v.double() - torch.where(mine, -a, true[0])) - true[1]
            bound = stable.enclosed(cases.z, cases.label, fmt, upstream=a, accuracy=DOCUMENTED)
            assert (apart.abs() <= bound.error + 2.0**-95 * bound.exact + a * 2.0**-1000).all()
            relative = apart.norm(dim=1) / bound.exact.norm(dim=1)
            limit = bounds.stable_ce_relative_error(K, fmt) + fmt.storage_unit_roundoff
            assert (relative <= limit).all()
            componentwise = bound.error.norm(dim=1) / bound.exact.norm(dim=1)
            assert (componentwise <= 2 * limit).all()


def stable_true(z, mine):
    """Softmax over the other classes as pairs, the label's place empty."""
    A = logit_gradients.DoubleWordArithmetic()
    wide = torch.where(mine, -math.inf, z.double())
    top = wide.amax(1, keepdim=True)
    s = A.sub(A.from_samples(torch.where(mine, top, wide)), A.from_samples(top))
    s = logit_gradients.DoubleWords(
        s.high.clamp_min(-700.0), torch.where(s.high > -700, s.low, 0), s.radius, None
    )
    e = A.exp(s)
    gone = mine | (s.high <= -700.0)
    e = logit_gradients.DoubleWords(
        torch.where(gone, 0.0, e.high), torch.where(gone, 0.0, e.low), e.radius, None
    )
    p = A.div(e, A.sum(e, [0]))
    return torch.stack([p.high, p.low])


def test_stable_cross_entropy_beats_cross_entropy_at_any_margin():
    z = torch.tensor([[0.0, -30.0, -31.0]])
    label = torch.tensor([0])
    ce = bounds.logit_gradient(z, label).sum() / 2e-13
    assert ce > 1e5
    found = bounds.stable_ce_logit_gradient(z, label)
    assert found.sum() < 1e-6
    with pytest.raises(ValueError, match=r"too many"):
        bounds.stable_ce_relative_error(10**7, formats.FLOAT32)


def test_the_papers_bound_is_the_formula():
    z, label = normal(6, 5).double(), torch.arange(6) % 5
    p = z.softmax(1).gather(1, label[:, None])[:, 0]
    # 2^x for |x| <= 30 multiplies float64's rounding of x by 30: 2^-48, and a few for the softmax
    assert torch.allclose(bounds.paper(z, label).exp2(), 2.0**-24 / (1 - p), 2.0**-44, 0)
    c = torch.full((6,), 0.5).double()
    q = (0.5 * z).softmax(1).gather(1, label[:, None])[:, 0]
    per_class = bounds.paper(z, label, c, epsilon_max=1e-3, per_class=True)
    assert torch.allclose(per_class.exp2(), 5 * 1e-3 / (2 * 0.5 * (1 - q)), 2.0**-44, 0)


def test_check_names_dead_and_misdirected_samples():
    z = torch.tensor([[3.0, 1.0, 0.0], [30.0, 0.0, -5.0], [9.0, 0.5, 0.0], [5.0, 2.0, 1.0]])
    found = bounds.check(z, torch.tensor([0, 0, 0, 1]), "float16")
    assert found["status"].tolist()[:3] == ["fine", "dead", "misdirected"]
    assert found["status"][3] == "fine"
    assert found["use_instead"].tolist()[1:3] == ["mifpe", "mifpe"]
    assert found["use_instead"].isna().tolist() == [True, False, False, True]
    assert found["relative_error"][1] == 1.0
    assert found["scenario"][3] == "untargeted_successful"
    assert (found["relative_error"] <= found["bound"]).all()
    wide = bounds.check(z, torch.tensor([0, 0, 0, 1]), "float64")
    assert (wide["status"] == "fine").all()
    with pytest.raises(ValueError, match=r"no bound is known"):
        bounds.check(z, torch.tensor([0, 0, 0, 1]), alternatives=["cw"])


@pytest.mark.parametrize("fmt", [formats.FLOAT16, formats.FLOAT32])
@pytest.mark.parametrize("units", [1.0, 1e4])
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_the_format_aware_temperature_minimises_its_bound(fmt, units, loss_scale):
    z = 20 * normal(20, 10).double()
    for place in (0, 3):
        label = z.argsort(1, descending=True)[:, place]
        T = format_aware.format_aware_T(z, label, fmt, units, loss_scale)
        options = (z, label, fmt, units, loss_scale)
        dense = torch.linspace(math.log(0.01), math.log(30), 3000).double().expand(20, -1)
        heights = format_aware.relative_error_model(dense, *options)
        saturated = dense.exp() > math.log(9 / fmt.storage_unit_roundoff)
        best = torch.where(saturated, math.inf, heights).amin(1)
        assert (
            format_aware.relative_error_model(T.log()[:, None], *options)[:, 0] <= best * 1.001
        ).all()


def test_underflow_alone_gives_t_star():
    """With C so large that nothing else counts, the format-aware optimum is the papers'."""
    z = 20 * normal(20, 10).double()
    label = z.argmax(1)
    T = format_aware.format_aware_T(z, label, formats.FLOAT16, 1e9)
    assert torch.allclose(T, t_star(z), 0.01, 0)  # what format_aware_T says of itself
    scaled = format_aware.format_aware_T(z, label, formats.FLOAT16, 1e3, 2.0**10)
    assert (scaled <= format_aware.format_aware_T(z, label, formats.FLOAT16, 1e3)).all()


def test_pmifpe_by_name():
    assert loss_named("pmifpe").units == 1.0
    assert loss_named("pmifpe:C=5e3").units == 5e3
    for wrong in ("pmifpe:T=1", "pmifpe:C=0", "pmifpe:C=", "mifpe:C=3"):
        with pytest.raises(ValueError, match=r"(?:pmifpe:C=<number>)|(?:positive finite)"):
            loss_named(wrong)


def test_backward_units_follow_absolute_weights():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-2.0, 1.0, 0.5]))
    x = normal(3, 4)
    first, last = model[0].weight.detach().double(), model[3].weight.detach().double()
    gamma = model[1].weight.detach().double() / (1 + model[1].eps) ** 0.5
    hidden = (model[1](model[0](x)) > 0).double()
    z = model(x)
    label = z.argmax(1)
    g = ((last[1 - label] - last[label]) * hidden * gamma) @ first  # of unit G for two classes
    for format, units in (("float16", (1, 1, 1)), ("float32", (3, 1, 2))):
        behind = (units[2] * hidden * gamma.abs() + units[1]) @ first.abs() + units[0]
        found = bounds.backward_units(model, x, format)
        assert torch.allclose(found, 0.5 * behind.norm(dim=1) / g.norm(dim=1), 2.0**-40, 0)
    with pytest.raises(ModelError, match=r"parameters of none of them"):
        bounds.backward_units(nn.Flatten(), x)
    with pytest.raises(ModelError, match=r"parameters of LayerNorm"):
        bounds.backward_units(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), x)


def test_a_stored_sum_that_overflows():
    """The kernel keeps the sum of exponentials in float16: 65,520 ties are infinitely many."""
    z, label = torch.zeros(1, 65_520).half(), torch.tensor([0])
    cases = TrialLogits(
        z, label, torch.ones(1).double(), torch.tensor([False]), 1.0, is_shifted=False
    )
    error, _ = logit_gradients.absolute_error(cases, logit_gradients.pytorch_gradient(cases))
    assert (error <= bounds.logit_gradient(z, label, accuracy=DOCUMENTED)).all()
    assert error.max() > 1e-5


def test_flushing_to_zero_is_refused():
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers")
    try:
        with pytest.raises(ValueError, match=r"gradual underflow"):
            bounds.logit_gradient(normal(2, 3), torch.tensor([0, 1]))
    finally:
        torch.set_flush_denormal(False)


def test_logits_of_others_in_three_dimensions():
    """The strided control really takes another kernel: in float16 it rounds less."""
    cases = draw("normal", 2000, 10, formats.FLOAT16, torch.Generator().manual_seed(0))
    last, middle = (
        logit_gradients.pytorch_gradient(cases),
        logit_gradients.pytorch_gradient(cases, strided=True),
    )
    assert not torch.equal(last, middle)
    z = cases.z.clone().requires_grad_()
    (direct,) = torch.autograd.grad(F.cross_entropy(z, cases.label, reduction="sum"), z)
    plain = (cases.c == 1) & ~cases.targeted
    assert torch.equal(direct[plain] * cases.upstream, last[plain]) or cases.upstream != 1.0
