"""Metrics against mpmath, and the stages against errors that were planted."""

import math
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fperr.exact.engines.jacobian import MpmathRows
from fperr.exact.engines.scaled import scaled
from fperr.exact.engines.vectors import MpVectors
from fperr.exact.mp import MpArithmetic
from fperr.gradient_error import stages
from fperr.gradient_error.metrics import error_metrics
from fperr.gradient_error.stages import STAGES, LogitGradients, Split, shares
from tests.conftest import normal

MP = MpArithmetic(200)
A = MpVectors(MP)
K, ENTRIES = 4, 7


@dataclass(frozen=True)
class Maps:
    """Jacobian rows: through the format's data, with its constants, cast, and exact."""

    data: object
    constants: object
    cast: object
    exact: object


def split(A, computed, v, maps):
    data, constants, cast = (
        None if rows is None else MpmathRows(rows, A)
        for rows in (maps.data, maps.constants, maps.cast)
    )
    gradient = MP.matmul(v.exact, maps.exact)
    of_constants, of_cast = stages.product(v.constants, constants), stages.product(v.cast, cast)
    return stages.split(A, computed, gradient, v, data, of_constants, of_cast)


def exact(tensor):
    return A.from_torch(tensor)


@pytest.fixture
def clean():
    """A computation without any error: every map and every logit gradient is the exact one."""
    rows = exact(normal(K, ENTRIES))
    v = exact(normal(1, K, seed=3))
    return Maps(*[rows] * 4), LogitGradients(*[v] * 5), MP.matmul(v, rows)


def plant(array, amount=1e-3):
    """The array with its first entry changed."""
    changed = array.copy()
    changed[0, 0] = changed[0, 0] + A.context.mpf(amount)
    return changed


def metrics(g, e):
    """The measures of g + e against g; both (1, entries) of the arithmetic."""
    computed = MP.add(g, e)
    signs = [A.sign(a) for a in (g, computed)]
    vectors = scaled(A, g), scaled(A, computed)
    return error_metrics(Split(*vectors, *signs, scaled(A, e), {}))


def nonzero(parts):
    return {name for name, stage in parts.stages.items() if stage.values.any()}


def replaced(record, **changes):
    names = record.__dataclass_fields__
    return type(record)(**{name: changes.get(name, getattr(record, name)) for name in names})


def test_no_error_no_stage(clean):
    maps, v, computed = clean
    parts = split(A, computed, v, maps)
    assert nonzero(parts) == set()
    assert all(math.isnan(share) for share in shares(parts).values())


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ("computed", {"backward"}),
        ("v.computed", {"loss", "backward"}),
        ("v.format", {"loss", "forward"}),
        ("v.constants", {"forward", "constants"}),
        ("v.cast", {"constants", "cast"}),
        ("v.exact", {"cast"}),
        ("maps.data", {"backward", "forward"}),
        ("maps.constants", {"forward", "constants"}),
        ("maps.cast", {"constants", "cast"}),
        ("maps.exact", {"cast"}),
    ],
)
def test_a_planted_error_shows_in_its_stages_and_in_no_other(clean, planted, expected):
    """A wrong J~, J_c or v cancels in the sum, but not in the stages: each shows where it must."""
    maps, v, computed = clean
    owner, _, field = planted.partition(".")
    if owner == "computed":
        computed = plant(computed)
    elif owner == "v":
        v = replaced(v, **{field: plant(getattr(v, field))})
    else:
        maps = replaced(maps, **{field: plant(getattr(maps, field))})
    parts = split(A, computed, v, maps)
    assert nonzero(parts) == expected


def test_stages_and_shares_sum_to_the_error():
    rows = [exact(normal(K, ENTRIES, seed=i)) for i in range(4)]
    v = LogitGradients(*(exact(normal(1, K, seed=10 + i)) for i in range(5)))
    parts = split(A, exact(normal(1, ENTRIES, seed=20)), v, Maps(*rows))
    total = sum(s.values * 2.0**s.exponent for s in parts.stages.values())
    error = parts.error.values * 2.0**parts.error.exponent
    # five float64 vectors are added, each rounded once; they are at most 4 times the total here
    assert float((total - error).norm() / error.norm()) < 16 * 2.0**-52
    assert abs(sum(shares(parts).values()) - 1) < 64 * 2.0**-52
    assert list(shares(parts)) == list(STAGES)


@pytest.mark.parametrize(
    ("missing", "undefined"),
    [
        ({"computed": None}, {"backward", "loss"}),
        ({"computed": None, "format": None}, {"backward", "loss", "forward"}),
        ({"constants": None}, {"forward", "constants"}),
        ({"cast": None}, {"constants", "cast"}),
    ],
)
def test_what_is_not_finite_leaves_its_stages_undefined(clean, missing, undefined):
    maps, v, computed = clean
    parts = split(A, computed, replaced(v, **missing), maps)
    assert {name for name, stage in parts.stages.items() if stage is None} == undefined
    assert parts.error is not None
    parts = split(A, None, v, maps)
    assert parts.error is None
    assert parts.stages["backward"] is None
    assert all(math.isnan(share) for share in shares(parts).values())


vectors = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=6)


@given(
    g=vectors,
    e=vectors,
    size=st.sampled_from([-60, -40, -3, 0, 40, 900]),
    shift=st.sampled_from([-3000, -60, 0, 60]),
)
def test_metrics_against_mpmath(g, e, size, shift):
    mp = A.context
    n = min(len(g), len(e))
    exact_g = [mp.ldexp(mp.mpf(value), shift) for value in g[:n]]
    exact_e = [mp.ldexp(mp.mpf(value), shift + size) for value in e[:n]]
    hats = [a + b for a, b in zip(exact_g, exact_e, strict=True)]
    norms = [mp.sqrt(mp.fdot(a, a)) for a in (exact_g, exact_e, hats)]
    if norms[0] == 0 or norms[2] == 0:
        return
    found = metrics(A.array(exact_g), A.array(exact_e))
    assert found["delta"] == pytest.approx(float(norms[1] / norms[0]), rel=1e-14, abs=0)
    largest = max(map(abs, exact_e)) / max(map(abs, exact_g))
    assert found["max_norm_delta"] == pytest.approx(float(largest), rel=1e-14, abs=0)
    distance = float(1 - mp.fdot(exact_g, hats) / (norms[0] * norms[2]))
    # the sine is formed with an absolute error of a few u |error|/|g_hat|
    slack = 16 * 2.0**-53 * float(norms[1] / norms[2])
    allowed = 1e-13 * abs(distance) + 2 * slack * math.sqrt(2 * abs(distance)) + slack**2
    assert abs(found["cosine_distance"] - distance) <= allowed + 2.0**-190
    wrong = [mp.sign(a) != mp.sign(h) for a, h in zip(exact_g, hats, strict=True) if a]
    assert found["sign_error_rate"] == pytest.approx(sum(wrong) / len(wrong))
    gain = mp.fsum(a * mp.sign(h) for a, h in zip(exact_g, hats, strict=True))
    gain /= mp.fsum(map(abs, exact_g))
    # numbers of six components at most, each rounded once
    assert found["step_gain"] == pytest.approx(float(gain), rel=0, abs=32 * 2.0**-53)


def test_signs_are_counted_where_the_gradient_is_not_zero():
    g = exact(torch.tensor([[1.0, -1.0, 2.0, 0.0, 3.0]]))
    error = exact(torch.tensor([[0.0, 2.0, -2.0, 7.0, 0.0]]))
    found = metrics(g, error)
    assert found["flip_rate"] == 0.25
    assert found["zero_rate"] == 0.25
    assert found["sign_error_rate"] == 0.5
    assert found["step_gain"] == pytest.approx((1 - 1 + 0 + 3) / 7)  # of |g|_1 = 7


def test_the_smallest_components_keep_their_signs():
    """2**-3000 beside 1: no float64 holds both on one scale, but a wrong sign is a wrong sign."""
    tiny = A.context.ldexp(A.context.one, -3000)
    found = metrics(A.array([A.context.one, tiny]), A.array([A.context.zero, -tiny]))
    assert found["zero_rate"] == 0.5
    found = metrics(A.array([A.context.one, tiny]), A.array([A.context.zero, -3 * tiny]))
    assert found["flip_rate"] == 0.5


def test_a_large_error_has_a_direction_too():
    found = metrics(A.array([A.context.one, A.context.zero]), exact(torch.tensor([[-1e20, 0.0]])))
    assert found["cosine_distance"] == 2.0
    assert found["delta"] == pytest.approx(1e20, rel=1e-7)


def test_a_dead_gradient_and_a_flat_one():
    g = exact(torch.tensor([[1.0, -2.0]]))
    dead = metrics(g, A.mul(g, -1.0))
    assert dead["delta"] == dead["max_norm_delta"] == dead["cosine_distance"] == 1.0
    assert dead["sign_error_rate"] == dead["zero_rate"] == 1.0
    assert dead["step_gain"] == 0.0
    assert metrics(g, A.mul(g, -2.0))["step_gain"] == -1.0
    assert metrics(g, A.mul(g, 5.0))["step_gain"] == 1.0
    flat = metrics(MP.zeros((1, 2)), g)
    assert all(math.isnan(value) for value in flat.values())


def test_errors_beyond_float64_are_infinite():
    tiny = np.array([[A.context.ldexp(A.context.mpf(1), -5000)]], dtype=object)
    found = scaled(A, exact(torch.ones(1, 1))).ratio(scaled(A, tiny))
    assert found == math.inf
    assert scaled(A, tiny).log2_norm == -5000
    assert mpmath.mp.prec == 53
