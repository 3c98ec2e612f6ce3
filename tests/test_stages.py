"""Metrics against mpmath, and the stages against errors that were planted."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fperr.exact.mp import MpArithmetic
from fperr.measurement.metrics import error_metrics
from fperr.measurement.stages import STAGES, LogitGradients, Maps, row, scaled, shares, split
from tests.conftest import normal

A = MpArithmetic(200)
K, ENTRIES = 4, 7


def exact(tensor):
    return A.from_torch(tensor)


@pytest.fixture
def clean():
    """A computation without any error: every map and every logit gradient is the exact one."""
    rows = exact(normal(K, ENTRIES))
    v = exact(normal(1, K, seed=3))
    return Maps(rows, rows, rows), LogitGradients(v, v, v, v), A.matmul(v, rows)


def plant(array, amount=1e-3):
    """The array with its first entry changed."""
    changed = array.copy()
    changed[0, 0] = changed[0, 0] + A.context.mpf(amount)
    return changed


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
        ("v.cast", {"forward", "cast"}),
        ("v.exact", {"cast"}),
        ("maps.data", {"backward", "forward"}),
        ("maps.cast", {"forward", "cast"}),
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
    rows = [exact(normal(K, ENTRIES, seed=i)) for i in range(3)]
    v = LogitGradients(*(exact(normal(1, K, seed=10 + i)) for i in range(4)))
    parts = split(A, exact(normal(1, ENTRIES, seed=20)), v, Maps(*rows))
    total = sum(s.values * 2.0**s.exponent for s in parts.stages.values())
    error = parts.error.values * 2.0**parts.error.exponent
    # four float64 vectors are added, each rounded once; they are at most 4 times the total here
    assert float((total - error).norm() / error.norm()) < 16 * 2.0**-52
    assert abs(sum(shares(parts).values()) - 1) < 64 * 2.0**-52
    assert list(shares(parts)) == list(STAGES)


@pytest.mark.parametrize(
    ("missing", "undefined"),
    [
        ({"computed": None}, {"backward", "loss"}),
        ({"computed": None, "format": None}, {"backward", "loss", "forward"}),
        ({"cast": None}, {"forward", "cast"}),
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


@given(g=vectors, e=vectors, shift=st.sampled_from([-3000, -60, 0, 60]))
def test_metrics_against_mpmath(g, e, shift):
    size = min(len(g), len(e))
    mp = A.context
    exact_g = [mp.mpf(value) for value in g[:size]]
    exact_e = [mp.ldexp(mp.mpf(value), -40) for value in e[:size]]
    hats = [a + b for a, b in zip(exact_g, exact_e, strict=True)]
    if not any(exact_g) or mp.fdot(hats, hats) == 0:
        return
    scaled_g = scaled(A, row(A, [mp.ldexp(a, shift) for a in exact_g]))
    scaled_e = scaled(A, row(A, [mp.ldexp(a, shift) for a in exact_e]))
    computed = torch.tensor([float(mp.sign(h)) for h in hats])
    found = error_metrics(scaled_g, scaled_e, computed)
    norm_g, norm_hat = (mp.sqrt(mp.fdot(a, a)) for a in (exact_g, hats))
    delta = mp.sqrt(mp.fdot(exact_e, exact_e)) / norm_g
    assert found["delta"] == pytest.approx(float(delta), rel=1e-14, abs=0)
    largest = max(map(abs, exact_e)) / max(map(abs, exact_g))
    assert found["max_norm_delta"] == pytest.approx(float(largest), rel=1e-14, abs=0)
    distance = 1 - mp.fdot(exact_g, hats) / (norm_g * norm_hat)
    # the part of the error across g is formed with an absolute error of a few u |error|
    slack = float(delta) * 1e-15 * (float(mp.sqrt(2 * abs(distance))) + float(delta) * 1e-15)
    assert (
        abs(found["cosine_distance"] - float(distance))
        <= 1e-13 * abs(float(distance)) + 4 * slack + 2.0**-190
    )
    wrong = [mp.sign(a) != mp.sign(h) for a, h in zip(exact_g, hats, strict=True) if a]
    assert found["sign_error_rate"] == pytest.approx(sum(wrong) / len(wrong))


def test_signs_are_counted_where_the_gradient_is_not_zero():
    g = scaled(A, exact(torch.tensor([[1.0, -1.0, 2.0, 0.0, 3.0]])))
    error = scaled(A, exact(torch.tensor([[0.0, 2.0, -2.0, 7.0, 0.0]])))
    found = error_metrics(g, error, torch.tensor([1.0, 1.0, 0.0, 7.0, 3.0]))
    assert found["flip_rate"] == 0.25
    assert found["zero_rate"] == 0.25
    assert found["sign_error_rate"] == 0.5


def test_a_dead_gradient_and_a_flat_one():
    g = scaled(A, exact(torch.tensor([[1.0, -2.0]])))
    minus_g = scaled(A, exact(torch.tensor([[-1.0, 2.0]])))
    dead = error_metrics(g, minus_g, torch.zeros(2))
    assert dead["delta"] == dead["max_norm_delta"] == dead["cosine_distance"] == 1.0
    assert dead["sign_error_rate"] == dead["zero_rate"] == 1.0
    flat = error_metrics(scaled(A, A.zeros((1, 2))), g, torch.ones(2))
    assert all(math.isnan(value) for value in flat.values())


def test_errors_beyond_float64_are_infinite():
    tiny = np.array([[A.context.ldexp(A.context.mpf(1), -5000)]], dtype=object)
    found = scaled(A, exact(torch.ones(1, 1))).ratio(scaled(A, tiny))
    assert found == math.inf
    assert scaled(A, tiny).log2_norm == -5000
    assert mpmath.mp.prec == 53
