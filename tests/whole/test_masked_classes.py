"""A class whose logit is -inf is absent: nothing differs from the logits of the others alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fperr
from fperr import bounds, formats, zoo
from fperr.attacks import UnjudgedWarning
from fperr.bounds import cross_entropy, stable
from fperr.bounds.kernels import DOCUMENTED
from fperr.formats import of_dtype
from fperr.losses import LOSS_NAMES, Context, loss_named
from fperr.theory import format_aware, scaling
from fperr.validation import falsify, logit_gradients
from fperr.validation.trial_logits import KINDS, draw, with_absent_classes
from tests.conftest import normal, seeded, tiny_mlp

INF = math.inf
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FORMATS = ("float16", "bfloat16", "float32", "float64")
PLAIN = [name for name in LOSS_NAMES if "=" not in name]
LOSSES = [*PLAIN, "mifpe:T=0.01", "mifpe:T=40", "mifpe_shifted:T=4", "pmifpe:C=30", "gama:weight=2"]
LOSSES += ["tmifpe:scenario=untargeted_successful", "tmifpe:scenario=untargeted_unsuccessful"]


def masked_rows(dtype, K, seed, least=4, count=60, size=4.0):
    """Logits with at least so many present classes in every row, labels and other labels of them.

    Labels are the prediction in every other row.
    """
    g = torch.Generator().manual_seed(seed)
    z = (size * torch.randn(count, K, generator=g)).to(dtype)
    rank = torch.rand(count, K, generator=g).argsort(1).argsort(1)
    kept = torch.randint(least, K + 1, (count, 1), generator=g)
    z = z.masked_fill(rank >= kept, -INF)
    order = z.argsort(1, descending=True)
    leads = torch.arange(count) % 2 == 0
    label = torch.where(leads, order[:, 0], order[:, 1])
    return z, label, torch.where(leads, order[:, 1], order[:, min(2, K - 1)])


def alone(z, *labels):
    """A row's present logits (1, k), their places, and the labels' numbers among them."""
    keep = z > -INF
    numbers = keep.cumsum(0) - 1
    return z[keep][None], keep, [numbers[label][None] for label in labels]


def with_gradient(name, z, label, context):
    leaf = z.clone().requires_grad_()
    value = loss_named(name)(leaf, label, context)
    (v,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), v, loss_named(name).scale(z, label, context).c


def contexts(targeted, y, z):
    """Of all rows, and of one row's present classes."""
    clean = (z.double() / 2).softmax(1)
    whole = Context(targeted, y, clean=clean, weight=2.0)

    def of(i, keep, number):
        return Context(targeted, number, clean=clean[i : i + 1, keep], weight=2.0)

    return whole, of


def tolerance(name, z, label, c):
    """What two sums over the same numbers, in other orders, may make v and the value differ by.

    Of v twice the proved bound, where there is one.
    """
    loss, u = loss_named(name), of_dtype(z.dtype).storage_unit_roundoff
    working = u if z.dtype == torch.float64 else 2.0**-24
    K, reach = z.shape[1], float(c.double() * (z.double().amax() - z.double().amin()))
    size = float(c.double() * z.double().abs().amax())
    # scaling, shifting, K - 1 additions, a logarithm, a difference, each of numbers below `size`,
    # `reach`, K and their logarithms; and what is stored, of which the value is one number
    value = 2 * (working * (K + 2 * reach + 8) + u * (4 * size + 2 * reach + 2 * math.log(K) + 2))
    if loss.kind in ("cw", "dlr"):
        return 0.0, 0.0
    if loss.kind == "stable_ce":
        return 2 * stable.enclosed(z, label, accuracy=DOCUMENTED).error, value
    if loss.kind == "cross_entropy":
        found = cross_entropy.enclosed(
            z, label, c.double(), shifted=loss.is_shifted, accuracy=DOCUMENTED
        )
        return 2 * found.error, value
    # GAMA: p_i is off by (K + 2 reach + 8) units of itself; p_i (g_i - sum p_j g_j) has |g| at
    # most 1 + 2 weight, and rounds K + 4 times more
    return (unit := 2 * (1 + 2 * 2.0) * u * (4 * K + 4 * reach + 24)), unit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "targeted"),
    [(n, t) for n in LOSSES for t in (False, True) if not (t and ":scenario=untargeted" in n)],
)
def test_losses_are_those_of_the_present_classes(name, targeted, dtype):
    z, label, y = masked_rows(dtype, 12, seed=len(name))
    whole, of = contexts(targeted, y, z)
    value, v, c = with_gradient(name, z, label, whole)
    assert v.isfinite().all()
    assert (v[z == -INF] == 0).all()
    scales_differ = 0
    for i in range(len(z)):
        own, keep, (number, other) = alone(z[i], label[i], y[i])
        expected, w, d = with_gradient(name, own, number, of(i, keep, other))
        if c[i] != d[0]:  # T to 1e-12: c may be rounded the other way
            scales_differ += 1
            assert abs(float(c[i]) / float(d[0]) - 1) < 2e-12 + torch.finfo(dtype).eps
            continue
        of_v, of_value = tolerance(name, own, number, d[0])
        assert ((v[i, keep].double() - w[0].double()).abs() <= of_v).all()
        assert abs(float(value[i]) - float(expected[0])) <= of_value
    if dtype != torch.float64:
        assert scales_differ <= 1


@pytest.mark.parametrize("name", ["ce", "mifpe", "tmifpe", "stable_ce", "gama"])
def test_a_class_far_below_is_not_an_absent_one(name):
    """Negative control: with 0 in place of -inf the comparison above does fail."""
    z, label, y = masked_rows(torch.float32, 12, seed=1)
    whole, of = contexts(False, y, z)
    _, v, _ = with_gradient(name, z.masked_fill(z == -INF, 0.0), label, whole)
    differ = 0
    for i in range(len(z)):
        own, keep, (number, other) = alone(z[i], label[i], y[i])
        _, w, d = with_gradient(name, own, number, of(i, keep, other))
        of_v, _ = tolerance(name, own, number, d[0])
        differ += bool(((v[i, keep].double() - w[0].double()).abs() > of_v).any())
    assert differ > 30


@settings(deadline=None, max_examples=60)
@given(
    K=st.integers(2, 40),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_scales_are_those_of_the_present_classes(K, seed, dtype, size):
    z, label, _ = masked_rows(dtype, K, seed, least=2, count=6, size=size)
    z[:2, :] = torch.where(z[:2] > -INF, 1.0, -INF)  # ties of all
    fmt = of_dtype(dtype)
    u = fmt.storage_unit_roundoff
    c = torch.full((6,), 0.5)
    for i in range(6):
        own, _, (number,) = alone(z[i], label[i])
        row, its = z[i : i + 1], label[i : i + 1]
        assert torch.equal(scaling.margin(row), scaling.margin(own))
        for a in (1.0, 1000.0):
            assert torch.equal(
                scaling.largest_scale(row, fmt, a), scaling.largest_scale(own, fmt, a)
            )
        assert scaling.present_classes(row) == own.shape[1]
        expected = scaling.saturation(own.shape[1], u)
        assert abs(float(scaling.saturations(row, u)) - expected) <= 2.0**-52 * expected * 2
        heights = []
        for t in (scaling.t_star(row), scaling.t_star(own)):
            assert 0.278 < float(t) <= scaling.largest_t_star(own.shape[1]) * (1 + 1e-12)
            delta = scaling.margin(own).clamp_min(1e-300)
            top = own.double().argmax(1)
            heights.append(float(scaling.log2_G(own, top, t / delta)))
        # float64 forms G with a relative error below 1e-14
        assert abs(heights[0] - heights[1]) < 1e-13 * (1 + abs(heights[0]))
        of_row, of_own = scaling.log2_G(row, its, c[:1]), scaling.log2_G(own, number, c[:1])
        assert abs(float(of_row - of_own)) <= 2.0**-52 * (8 + K + abs(float(of_own)))
        if i < 2:
            continue  # T is used through the cap alone where Delta is 0
        t, expected = (
            float(format_aware.format_aware_T(z_, l_, fmt))
            for z_, l_ in ((row, its), (own, number))
        )
        # the lowest of a grid: two heights that agree to rounding may change places, so r decides
        r = format_aware.relative_error_model(
            torch.tensor([[t, expected]]).double().log(), own, number, fmt, 1.0, 1.0
        )
        assert abs(float(r[0, 0] / r[0, 1]) - 1) < 1e-12


def test_the_published_case():
    z = torch.tensor([[5.0, 1.0, -INF, 0.0]])
    assert float(scaling.t_star(z)) == pytest.approx(1.3207325353472, abs=1e-12)
    value = loss_named("stable_ce")(z, torch.tensor([0]), Context())
    assert float(value) == pytest.approx(math.log(math.e + 1) - 5, abs=1e-6)


@pytest.mark.parametrize("u", [2.0**-12, 2.0**-24, 2.0**-53])
def test_saturations_of_whole_rows_are_the_number_itself(u):
    for K in (*range(2, 130), 1000):
        assert float(scaling.saturations(torch.zeros(1, K), u)) == scaling.saturation(K, u)


def bad_rows():
    """Rows of one class, of none, with NaN and with +inf; among them two good ones."""
    rows = [
        [3.0, 1.0, -INF, 0.0, 2.0],
        [-INF, 4.0, -INF, -INF, -INF],
        [-INF] * 5,
        [1.0, math.nan, 0.0, 2.0, -INF],
        [1.0, INF, 0.0, 2.0, -INF],
        [1.0, 5.0, 2.0, 4.0, -INF],
    ]
    return torch.tensor(rows), torch.tensor([0, 1, 1, 0, 0, 1])


VALUES_OF_ONE = {"stable_ce": -INF, "cw": -INF, "gama": -1.0, "dlr": math.nan}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bad_row_does_not_spread(name, dtype):
    z, label = bad_rows()
    z = z.to(dtype)
    context = Context(clean=torch.full((6, 5), 0.2), weight=0.0)
    value, v, _ = with_gradient(name, z, label, context)
    good = [0, 5]
    few = Context(clean=torch.full((2, 5), 0.2), weight=0.0)
    expected, w, _ = with_gradient(name, z[good], label[good], few)
    assert torch.equal(value[good], expected)
    assert torch.equal(v[good], w)
    assert v[good].isfinite().all()
    assert v[good].any(1).all()
    kind = loss_named(name).kind
    of_one = torch.tensor(VALUES_OF_ONE.get(kind, 0.0), dtype=dtype)
    assert torch.equal(value[1].nan_to_num(7.0), of_one.nan_to_num(7.0))
    assert v[1].isnan().any() if kind == "dlr" else (v[1] == 0).all()
    if kind not in ("cw", "dlr"):  # these two look at the best classes only
        assert value[[3, 4]].isnan().all()
    else:
        assert not value[[3, 4]].isfinite().any()


def test_a_row_without_a_scale_says_so():
    z, label = bad_rows()
    found = loss_named("tmifpe").scale(z, label, Context())
    assert found.T[1:5].isnan().all()
    assert found.T[[0, 5]].isfinite().all()
    assert found.c[1] == scaling.largest_scale(z, formats.FLOAT32, 1.0)[1]
    assert not found.is_capped[1]
    assert found.c[3:5].isnan().all()
    assert scaling.margin(z)[1] == INF
    assert scaling.t_star(z)[1:5].isnan().all()
    assert format_aware.format_aware_T(z, label, formats.FLOAT32)[1:5].isnan().all()
    assert scaling.log2_G(z, label, torch.ones(6))[1] == -INF
    assert scaling.present_classes(z).tolist() == [4, 1, 0, 4, 4, 4]


def test_dlr_needs_its_classes():
    z = torch.tensor([[3.0, 1.0, -INF, -INF], [3.0, 1.0, 0.5, -INF], [3.0, 1.0, 0.5, 0.0]])
    label, y = torch.tensor([1, 1, 1]), torch.tensor([0, 0, 0])
    value, v, _ = with_gradient("dlr", z, label, Context())
    assert value.isnan().tolist() == [True, False, False]
    assert v.isnan().any(1).tolist() == [True, False, False]
    value, v, _ = with_gradient("dlr", z, label, Context(targeted=True, y=y))
    assert value.isnan().tolist() == [True, True, False]
    assert v.isnan().any(1).tolist() == [True, True, False]


def test_an_absent_label_costs_infinitely_much():
    z, label = torch.tensor([[3.0, 1.0, 0.0, -INF]]), torch.tensor([3])
    for name in ("ce", "mifpe", "tmifpe", "stable_ce", "cw", "dlr"):
        value, v, _ = with_gradient(name, z, label, Context())
        assert value == INF, name
        assert not v.isnan().any(), name


# Bounds


@pytest.fixture(scope="module")
def trials():
    return falsify(FORMATS, 1500, is_masked=True, accuracy=DOCUMENTED)


def test_no_masked_case_violates_the_bound(trials):
    assert (trials.groupby("format", observed=True).size() >= 1500).all()
    assert set(trials["kind"]) == set(KINDS)
    assert (trials["ratio"] <= 1).all()
    worst = trials[trials["is_searched"]].groupby("format", observed=True)["ratio"].max()
    assert (worst > 0.9).all()  # it is no giveaway


@pytest.mark.parametrize("name", FORMATS)
def test_the_smallest_number_at_an_absent_class_is_a_violation(name):
    """Negative control: the bound there is 0, and nothing else passes."""
    # the truth of float64 is known to 2^-1000 c only
    smallest = 2.0**-900 if name == "float64" else formats.format_named(name).smallest_subnormal

    def computed(cases):
        v = logit_gradients.pytorch_gradient(cases)
        return torch.where(cases.z == -INF, smallest, v)

    options = {"is_masked": True, "accuracy": DOCUMENTED}
    found = falsify([name], 400, computed=computed, **options)
    assert (found["ratio"] == INF).mean() > 0.3
    assert (falsify([name], 400, **options)["ratio"] <= 1).all()


def test_additions_of_present_classes_still_count():
    """Negative control: a bound that forgot them is violated by masked cases, too."""
    kernel = bounds.Kernel("control", store_sum=1.0, store_log=1.0, add=0.0, exp=0.0, log=0.0)
    found = falsify(["float32"], 3000, is_masked=True, kernel=kernel, accuracy=DOCUMENTED)
    assert (found["ratio"] > 1).any()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kernel", ["cpu", "cpu_strided"])
def test_bounds_are_those_of_the_present_classes(name, kernel):
    """But for the order in which float64 adds: each of them is raised by 2^-40 for its rounding."""
    fmt, g = formats.format_named(name), torch.Generator().manual_seed(len(name))
    near = 2.0**-40
    for kind in KINDS:
        cases = with_absent_classes(draw(kind, 40, 15, fmt, g), g)
        absent = cases.z == -INF
        options = {"upstream": cases.upstream, "kernel": kernel, "accuracy": DOCUMENTED}
        shifted = {"shifted": cases.is_shifted}
        found = cross_entropy.enclosed(cases.z, cases.label, cases.c, fmt, **options, **shifted)
        steady = stable.enclosed(cases.z, cases.label, fmt, **options)
        for bound in (found, steady):
            assert (bound.error[absent] == 0).all()
            assert (bound.exact[absent] == 0).all()
        for i in range(40):
            own, keep, (number,) = alone(cases.z[i], cases.label[i])
            c = cases.c[i : i + 1]
            expected = cross_entropy.enclosed(own, number, c, fmt, **options, **shifted)
            unmasked = stable.enclosed(own, number, fmt, **options)
            for bound, reference in ((found, expected), (steady, unmasked)):
                for part in ("error", "exact"):
                    a, b = getattr(bound, part)[i, keep], getattr(reference, part)[0]
                    # a known rounding is as uncertain as the number that is rounded
                    assert ((a - b).abs() <= near * (b + reference.exact[0])).all()
            for per_class in (False, True):
                a = bounds.paper(cases.z[i : i + 1], cases.label[i : i + 1], c, per_class=per_class)
                b = bounds.paper(own, number, c, per_class=per_class)
                assert abs(float(a - b)) <= near * (1 + abs(float(b)))


def test_stable_ces_gradient_is_within_its_bound():
    for dtype in DTYPES:
        z, label, _ = masked_rows(dtype, 9, seed=4, least=2, size=20.0)
        _, v, _ = with_gradient("stable_ce", z, label, Context())
        found = stable.enclosed(z, label, accuracy=DOCUMENTED)
        direction = torch.where(torch.arange(9) == label[:, None], -1.0, 1.0)
        slack = 2.0**-44 if dtype != torch.float64 else 2.0**-48  # of |v| itself, in float64
        apart = (v.double() - direction * found.exact).abs() - slack * found.exact
        assert (apart <= found.error).all()


def test_bounds_of_rows_without_a_gradient():
    z = torch.tensor([[-INF, 4.0, -INF], [-INF] * 3, [2.0, 1.0, -INF], [-INF, 2.0, -INF]])
    label = torch.tensor([1, 1, 0, 0])
    for bound in (cross_entropy.enclosed(z, label), stable.enclosed(z, label)):
        assert (bound.error[0] == 0).all()
        assert (bound.exact[0] == 0).all()
        assert bound.error[2].isfinite().all()
    found = cross_entropy.enclosed(z, label)
    assert found.error[1].isnan().all()
    assert found.exact[3].tolist() == [1.0, 1.0, 0.0]  # of an absent label v = p - onehot
    for value in (math.nan, INF):
        with pytest.raises(ValueError, match="finite, or -inf where a class is absent"):
            bounds.logit_gradient(torch.tensor([[1.0, value]]), torch.tensor([0]))


def test_check_tells_rows_without_a_gradient():
    z = torch.tensor([[-INF, 4.0, -INF], [2.0, 1.0, -INF], [30.0, 1.0, -INF], [2.0, 1.0, -INF]])
    found = bounds.check(z, torch.tensor([1, 0, 0, 2]))
    assert found["status"].tolist() == ["undefined", "fine", "dead", "undefined"]
    assert found["relative_error"].isna().tolist() == [True, False, False, True]
    assert found["use_instead"].isna().tolist() == [True, True, False, True]
    assert found["use_instead"][2] == "mifpe"
    alone = bounds.check(z[1:3, :2], torch.tensor([0, 0]))
    columns = ["status", "margin", "relative_error", "use_instead"]
    assert found.loc[1:2, columns].reset_index(drop=True).equals(alone[columns])


def test_a_number_that_overflows_is_no_absent_class():
    z = torch.tensor([[2.0, 1.0, -1e9]])
    with pytest.raises(ValueError, match="logits overflow float16: mask with -inf"):
        bounds.check(z, torch.tensor([0]), "float16")
    assert bounds.check(z, torch.tensor([0]), "float32")["status"].tolist() == ["fine"]


class Absent(nn.Module):
    """Puts some classes at -inf."""

    def __init__(self, K, keep):
        super().__init__()
        away = torch.ones(K, dtype=torch.bool)
        away[keep] = False
        self.register_buffer("away", away)

    def forward(self, z):
        return z.masked_fill(self.away, -INF)


class Selected(nn.Module):
    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def forward(self, z):
        return z[:, self.keep]


def test_backward_units_of_a_masked_head():
    """Half formats round a sum once; others each product, also those with an absent class's 0."""
    keep = [0, 2, 3]
    network = tiny_mlp(classes=6)
    head = nn.Linear(8, 3)
    with torch.no_grad():
        head.weight.copy_(network[2].weight[keep])
        head.bias.copy_(network[2].bias[keep])
    smaller = nn.Sequential(network[0], network[1], head).eval()
    masked_head = nn.Sequential(network, Absent(6, keep)).eval()
    x = normal(7, 6)
    for name in ("float16", "bfloat16"):
        ratio = bounds.backward_units(masked_head, x, name) / bounds.backward_units(
            smaller, x, name
        )
        assert ((ratio - 1).abs() < 2.0**-40).all()
    ratio = bounds.backward_units(masked_head, x, "float32")
    ratio = ratio / bounds.backward_units(smaller, x, "float32")
    assert ((ratio > 1 - 2.0**-40) & (ratio < 2 * (1 + 2.0**-40))).all()


# Attacks

KEEP = [1, 2, 4, 6, 9]


def both_heads(fashion, count=24):
    model = zoo.load("fashion_saturated")
    here = torch.isin(fashion.y, torch.tensor(KEEP))
    x, y = fashion.x[here][:count], fashion.y[here][:count]
    renumbered = torch.tensor([KEEP.index(int(label)) for label in y])
    other = (renumbered + 2) % len(KEEP)
    masked_head = nn.Sequential(model, Absent(10, KEEP)).eval()
    smaller = nn.Sequential(model, Selected(KEEP)).eval()
    return x, (masked_head, y, torch.tensor(KEEP)[other]), (smaller, renumbered, other)


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("loss", PLAIN)
def test_an_attack_on_a_masked_head_is_that_on_the_smaller_one(fashion, loss, targeted):
    x, *heads = both_heads(fashion)
    found = [
        fperr.attack(
            model, x, y, radius=0.03, steps=8, loss=loss, targets=targets if targeted else None
        )
        for model, y, targets in heads
    ]
    assert found[0].is_finite.all()
    assert torch.equal(found[0].success, found[1].success)
    assert 0 < found[0].success.sum() < len(x) or targeted


@pytest.mark.parametrize("options", [{"method": "apgd"}, {"format": "float16"}], ids=str)
def test_other_attacks_on_a_masked_head(fashion, options):
    x, *heads = both_heads(fashion)
    for loss in ("tmifpe", "stable_ce"):
        found = [
            fperr.attack(model, x, y, radius=0.03, steps=8, loss=loss, **options)
            for model, y, _ in heads
        ]
        assert found[0].is_finite.all()
        assert torch.equal(found[0].success, found[1].success)


def test_absent_labels_and_targets_are_refused():
    model = nn.Sequential(tiny_mlp(classes=6), Absent(6, [0, 2, 3])).eval()
    x = normal(4, 6).clamp(0, 1)
    y, away = torch.tensor([0, 2, 3, 0]), torch.tensor([2, 3, 4, 5])
    message = r"must be classes of finite logits, got class 4 at -inf for sample 2 \(2 such"
    with pytest.raises(ValueError, match="^y " + message):
        fperr.attack(model, x, away, radius=0.1)
    with pytest.raises(ValueError, match="^targets " + message):
        fperr.attack(model, x, y, radius=0.1, targets=away)
    with pytest.raises(ValueError, match="at least 4 classes whose logits are not -inf, the model"):
        fperr.attack(model, x, y, radius=0.1, loss="dlr", targets=torch.tensor([2, 3, 0, 2]))
    assert fperr.attack(model, x, y, radius=0.1, loss="dlr", steps=2).is_finite.all()


def test_a_label_that_overflows_in_float16_is_not_refused():
    network = nn.Linear(2, 3).eval()
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([-1e5, 0.0, 1.0]))
        network.weight[1] = 1.0
    x, y = torch.full((2, 2), 0.5), torch.tensor([0, 1])
    with pytest.warns(UnjudgedWarning, match="1 of 2 could not be judged"):
        found = fperr.attack(network, x, y, radius=0.1, format="float16", steps=2)
    assert found.is_finite.tolist() == [False, True]


class MasksByInput(nn.Module):
    """Leaves one class where the first pixel is dark, and two where the second is."""

    def __init__(self):
        super().__init__()
        self.inner = seeded(nn.Linear(6, 4))

    def forward(self, x):
        z = self.inner(x)
        numbers = torch.arange(4)
        for pixel, kept in ((0, 1), (1, 2)):
            z = z.masked_fill((x[:, pixel : pixel + 1] < 0.2) & (numbers >= kept), -INF)
        return z


@pytest.mark.parametrize("loss", PLAIN)
def test_one_row_does_not_stop_the_batch(loss):
    model = MasksByInput().eval()
    x = 0.4 + 0.2 * normal(6, 6).sigmoid()
    x[1, 0] = x[2, 1] = 0.05
    y = torch.tensor([0, 0, 1, 2, 3, 0])
    with pytest.warns(UnjudgedWarning, match="1 of 6 could not be judged"):
        found = fperr.attack(model, x, y, radius=0.05, loss=loss, steps=4)
    assert found.is_judged.tolist() == [True, False, True, True, True, True]
    rest = [0, 2, 3, 4, 5] if loss_named(loss).kind != "dlr" else [0, 3, 4, 5]
    assert found.is_finite[rest].all()
    assert not found.is_finite[1]  # a margin without another class is no number
    assert not found.success[1]
    expected = fperr.attack(model, x[rest], y[rest], radius=0.05, loss=loss, steps=4)
    assert torch.equal(found.success[rest], expected.success)
    if loss_named(loss).kind == "dlr":
        assert not found.is_finite[2]
