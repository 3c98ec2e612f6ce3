"""T, c and G against mpmath at 50 digits, and the traps that defeat a root finder."""

import math
from collections import Counter
from itertools import pairwise

import mpmath
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fperr.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from fperr.theory import scaling
from tests.conftest import normal

MP = mpmath.MPContext()
MP.dps = 50
HALF_FORMATS_TO_DOUBLE = (FLOAT16, BFLOAT16, FLOAT32, FLOAT64)


def scaled(logits, label, T, fmt, loss_scale=1.0):
    wanted = scaling.temperature(logits, label, T, fmt.storage_unit_roundoff)
    return scaling.scale(logits, wanted, fmt, loss_scale)


def from_ratios(*ratios):
    """Logits with Delta = 1 whose gaps to the top are `ratios`."""
    return -torch.tensor([[0.0, *ratios]], dtype=torch.float64)


def log_height(t, ratios):
    """log(G Delta) at t."""
    total = MP.fsum(n * MP.exp(-t * a) for a, n in Counter(ratios).items())
    return MP.log(t) + MP.log(total) - MP.log1p(total)


def slope(t, ratios):
    """S (1 + S) - t B, which has the sign of G'."""
    weights = [(a, n * MP.exp(-t * a)) for a, n in Counter(ratios).items()]
    total = MP.fsum(w for _, w in weights)
    return total * (1 + total) - t * MP.fsum(a * w for a, w in weights)


def reference_t_star(ratios):
    """The global maximiser by brute force: every sign change of G' on a fine grid, bisected."""
    end = 1 + MP.lambertw(MP.mpf(len(ratios)) / MP.e).real
    grid = [end * MP.mpf(k) / 1000 for k in range(1, 1001)]
    peaks = [end]
    for low, high in pairwise(grid):
        if slope(low, ratios) > 0 >= slope(high, ratios):
            for _ in range(170):
                middle = (low + high) / 2
                low, high = (middle, high) if slope(middle, ratios) > 0 else (low, middle)
            peaks.append(low)
    return max(peaks, key=lambda t: log_height(t, ratios))


def test_two_classes_have_lambert_ws_solution():
    expected = float(1 + MP.lambertw(1 / MP.e).real)
    found = float(scaling.t_star(from_ratios(1.0)))
    assert abs(found / expected - 1) < 1e-12
    assert expected == pytest.approx(1.278464542761074, abs=0, rel=1e-15)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(10, 2.101002997276973), (100, 3.628649597020282), (1000, 5.420501603942928)],
)
def test_ties_among_all_runners_up_reach_the_upper_bound(classes, expected):
    found = float(scaling.t_star(from_ratios(*[1.0] * (classes - 1))))
    assert abs(found / expected - 1) < 1e-12
    assert abs(scaling.largest_t_star(classes) / expected - 1) < 1e-14


TRAPS = {
    "K=1000, a=(1, 100, ...)": [1.0] + [100.0] * 998,
    "K=1000, a=(1, 20, ...)": [1.0] + [20.0] * 998,
    "K=100, a=(1, 10, ...): the smaller t wins": [1.0] + [10.0] * 98,
    "K=100, a=(1, 10.5, ...): the larger t wins": [1.0] + [10.5] * 98,
    "K=14: two peaks": [1.0] + [5.8795] * 12,
    "K=50: the smaller t wins by 5e-4": [1.0] + [8.6107] * 48,
    "K=20: no inflection is taken": (
        [1.0, 3.838370974962623] + [6.74577565099156] * 16 + [14.66671310079516]
    ),
    "three scales": [1.0, 1.0] + [5.0] * 40 + [30.0] * 900,
    "a far outlier": [1.0, 2.0, 1e300],
}


@pytest.mark.parametrize("ratios", TRAPS.values(), ids=TRAPS)
def test_traps_for_a_root_finder(ratios):
    found = float(scaling.t_star(from_ratios(*ratios)))
    expected = reference_t_star([MP.mpf(a) for a in ratios])
    assert abs(found / float(expected) - 1) < 1e-12


@pytest.mark.parametrize("ratios", TRAPS.values(), ids=TRAPS)
def test_absent_classes_are_no_way_out_of_a_trap(ratios):
    logits = from_ratios(*ratios)
    around = torch.full((1, 7), -math.inf, dtype=torch.float64)
    found = scaling.t_star(torch.cat([around, logits, around, around], 1))
    assert abs(float(found / scaling.t_star(logits)) - 1) < 2e-12


def test_where_the_trap_is_a_local_maximum_has_another_value():
    """Negative control: a solver that returned the other peak would fail the test above."""
    ratios = TRAPS["K=100, a=(1, 10, ...): the smaller t wins"]
    assert float(scaling.t_star(from_ratios(*ratios))) == pytest.approx(0.4264, abs=1e-4)
    assert slope(MP.mpf("1.268"), ratios) > 0 > slope(MP.mpf("1.270"), ratios)


@pytest.mark.parametrize(
    "ratios",
    [
        [1.0] + [10.2675451323] * 98,  # two maxima
        [1.0] + [2.2] * 2 + [8.5] * 98 + [14.0] * 98,  # one, and a slope that is nearly 0 beside it
    ],
)
def test_where_t_star_is_ill_conditioned_the_height_agrees(ratios):
    found = float(scaling.t_star(from_ratios(*ratios)))
    gap = log_height(MP.mpf(found), ratios) - log_height(reference_t_star(ratios), ratios)
    assert abs(gap) < 1e-10


@settings(deadline=None, max_examples=40)
@given(
    gaps=st.lists(st.floats(0, 200), min_size=1, max_size=30),
    delta=st.floats(1e-3, 1e3),
    offset=st.floats(-100, 100),
)
@example(gaps=[0.0], delta=1.0, offset=0.0)
@example(gaps=[0.0, 199.0] + [9.0] * 28, delta=1e-3, offset=100.0)
def test_t_star_maximises_g(gaps, delta, offset):
    logits = torch.tensor([[0.0, -delta, *(-delta * (1 + g) for g in gaps)]], dtype=torch.float64)
    logits = logits + offset
    found = MP.mpf(float(scaling.t_star(logits)))
    z = [MP.mpf(v) for v in logits[0].tolist()]
    ratios = [(z[0] - v) / (z[0] - z[1]) for v in z[1:]]
    best = log_height(reference_t_star(ratios), ratios)
    # float64 forms G with a relative error below 1e-14, and near a maximum that is all it sees
    assert best - log_height(found, ratios) < 1e-13


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_the_slope_changes_its_sign_at_every_t_star(classes):
    z = normal(5000, classes).double()
    top = z.topk(2, dim=1).values
    ratios = (top[:, :1] - z) / (top[:, :1] - top[:, 1:])
    others = torch.where(ratios > 0, ratios, math.inf)

    def is_rising(t):
        weights = torch.exp(-t[:, None] * others)
        total = weights.sum(1)
        return total * (1 + total) > t * (weights * ratios).sum(1)

    found = scaling.t_star(z)
    assert bool((is_rising(found * (1 - 1e-9)) & ~is_rising(found * (1 + 1e-9))).all())
    wrong = found * (1 + 1e-8)  # and one that is off by more does not pass
    assert not bool(is_rising(wrong * (1 - 1e-9)).any())


def test_no_host_synchronisation():
    """On the meta device there are no values: anything that asks for one raises."""
    logits = torch.empty(5, 10, device="meta")
    label = torch.zeros(5, dtype=torch.int64, device="meta")
    found = scaled(logits, label, None, FLOAT32)
    assert found.T.shape == found.c.shape == (5,)
    with pytest.raises(RuntimeError):
        bool(logits[0, 0] > 0)


def test_t_star_is_batched():
    logits = normal(50, 10)
    together = scaling.t_star(logits)
    alone = torch.cat([scaling.t_star(row[None]) for row in logits])
    assert ((together / alone - 1).abs() < 1e-12).all()
    assert ((together > 0.278) & (together <= scaling.largest_t_star(10) * (1 + 1e-12))).all()


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12),
    label=st.integers(0, 1),
    log2_c=st.integers(-20, 6),
)
def test_log2_g_against_mpmath(logits, label, log2_c):
    c = 2.0**log2_c
    found = float(
        scaling.log2_G(
            torch.tensor([logits], dtype=torch.float64), torch.tensor([label]), torch.tensor([c])
        )
    )
    top = max(logits)
    weights = [MP.exp(c * (MP.mpf(z) - top)) for z in logits]
    rest = MP.fsum(w for i, w in enumerate(weights) if i != label) / MP.fsum(weights)
    exact = MP.log(c * rest, 2)
    # gaps and their products with c are rounded once each: u c gap in the logarithm
    reach = c * (max(logits) - min(logits))
    assert abs(found - exact) <= 1e-15 * (8 + abs(exact) + 4 * reach)


def test_g_of_nearly_tied_logits_far_from_zero():
    """Scaling before shifting would lose the margin: 48.197 instead of 48.105."""
    z = torch.tensor([[1.0, 1.0 - 2.0**-50, 0.5]], dtype=torch.float64)
    c = torch.tensor([2.0**50], dtype=torch.float64)
    found = float(scaling.log2_G(z, torch.tensor([0]), c))
    p = MP.exp(-1) / (1 + MP.exp(-1))
    assert found == pytest.approx(float(MP.log(2**50 * p, 2)), abs=1e-13)


def test_saturation_is_the_tables_value():
    found = [scaling.saturation(10, f.unit_roundoff) for f in HALF_FORMATS_TO_DOUBLE]
    assert [round(t, 2) for t in found] == [9.82, 7.74, 18.83, 38.93]


@pytest.mark.parametrize("fmt", HALF_FORMATS_TO_DOUBLE, ids=lambda f: f.name)
@pytest.mark.parametrize("T", [0.01, 1.0, None, 100.0])
@pytest.mark.parametrize("magnitude", [1e-7, 1e-3, 1.0, 30.0, 3e4])
def test_capped_scales_keep_every_gradient_finite(fmt, T, magnitude):
    logits = (normal(30, 7).clamp(-2, 2) * magnitude).to(fmt.dtype)
    logits[:10, 1] = logits[:10, 0]  # ties somewhere
    logits[10:15] = logits[10:15, :1]  # everything tied
    label = torch.arange(30) % 7
    for loss_scale in (1.0, 1024.0):
        found = scaled(logits, label, T, fmt, loss_scale)
        leaf = logits.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(found.c[:, None] * leaf, label, reduction="none")
        (v,) = torch.autograd.grad(loss.sum() * loss_scale, leaf)
        assert v.isfinite().all()
        assert found.c.isfinite().all()
        assert found.T.isfinite().all()
        assert not found.T.isnan().any()


def test_an_uncapped_scale_does_overflow():
    """Negative control: without the cap, the test above fails."""
    logits = torch.tensor([[1e-7, 0.0, 0.0]]).to(torch.float16)
    c = (1.0 / scaling.margin(logits)).to(torch.float16)
    assert not c.isfinite().all()
    assert scaled(logits, torch.tensor([0]), 1.0, FLOAT16).is_capped.all()


def test_the_cap_is_a_power_of_two_below_its_limit():
    logits = normal(100, 5) * 100
    for fmt in HALF_FORMATS_TO_DOUBLE:
        cap = scaling.largest_scale(logits, fmt, 3.0)
        assert (torch.frexp(cap).mantissa == 0.5).all()
        reach = torch.maximum(
            logits.double().abs().amax(1), logits.double().amax(1) - logits.double().amin(1)
        )
        limit = (fmt.largest / 4 / reach.clamp(min=3.0)).clamp(max=2.0**fmt.scale_exponent)
        assert ((cap <= limit) & (2 * cap > limit)).all()


def test_scale_follows_the_scenario():
    logits = torch.tensor([[3.0, 1.0, 0.0]] * 2)
    found = scaled(logits, torch.tensor([0, 1]), None, FLOAT32)
    assert found.T[0] == pytest.approx(float(scaling.t_star(logits)[0]), rel=2**-24)
    assert found.T[1] == pytest.approx(math.log(2 / 2**-24), rel=2**-24)
