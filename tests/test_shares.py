"""Shares of samples: Wilson's interval, and where it is shown."""

import pytest
import torch
from scipy.stats import binomtest

from fperr import exact
from fperr.attacks.entry import AttackResult, AttackSettings
from fperr.attacks.outcome import Outcome
from fperr.shares import wilson_interval


@pytest.mark.parametrize(("count", "samples"), [(84, 100), (0, 5), (5, 5), (1, 1), (997, 1000)])
def test_wilson_s_interval_is_scipy_s(count, samples):
    theirs = binomtest(count, samples).proportion_ci(method="wilson")
    assert wilson_interval(count, samples) == pytest.approx((theirs.low, theirs.high), abs=1e-14)


def a_result(withstanding: int, samples: int, unjudged: int = 0) -> AttackResult:
    success = torch.arange(samples) >= withstanding + unjudged
    judged = torch.arange(samples) >= unjudged
    counts = torch.ones(samples, dtype=torch.int64)
    points = torch.zeros(samples, 2)
    return AttackResult(
        adversarial=points, best=points, success=success, first_success_step=counts,
        best_margin=counts.double(), is_finite=judged, is_judged=judged,
        is_clean_correct=judged, gradient_steps=counts, zero_gradient_steps=0 * counts,
        broken_gradient_steps=0 * counts, excess_ulps=counts.double(),
        settings=AttackSettings("pgd", "ce", "float32", "linf", 0.05, is_targeted=False),
    )  # fmt: skip


def test_a_result_prints_as_one_line():
    shown = repr(a_result(84, 100))
    assert shown == (
        "AttackResult(84 of 100 withstand, 84.0 % [75.6, 89.9], pgd/ce/float32, linf 0.05)"
    )
    assert "2 not judged" in repr(a_result(3, 10, unjudged=2))


def test_an_outcome_knows_its_interval():
    outcome: Outcome = a_result(84, 100).outcome
    assert outcome.robust_interval == wilson_interval(84, 100)


def test_an_exact_gradient_prints_as_one_line():
    model = torch.nn.Linear(3, 2).eval()
    shown = repr(exact.gradient(model, torch.rand(2, 3), torch.rand(2, 2), engine="ball"))
    assert shown.startswith("ExactGradient(shape (2, 3), ")
    assert "Arb balls" in shown
    assert len(shown) < 120
