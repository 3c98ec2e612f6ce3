"""Which loss an attack follows is seen in its dL/dz; what is no loss is not taken for one."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import fperr
from fperr.losses import Context, loss_named
from fperr.recording.recognition import recognise
from tests.attacks.test_attacks import uniform
from tests.conftest import normal, tiny_mlp
from tests.recording.test_recording import descent

LOGITS = normal(9, 6) * 4
LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2])


def logit_gradient(objective):
    z = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(objective(z), z)[0]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    "name", ["ce", "stable_ce", "cw", "dlr", "mifpe", "tmifpe", "mifpe:T=4", "pmifpe"]
)
def test_losses_are_recognised(name, targeted, sign, reduction):
    loss, targets = loss_named(name), (LABELS + 2) % 6
    label = targets if targeted else LABELS

    def objective(z):
        values = loss(z, label, Context(targeted, LABELS))
        return sign * (values.sum() if reduction == "sum" else values.mean())

    v = logit_gradient(objective)
    found = recognise(LOGITS, v, LABELS, targets if targeted else None, [name])
    assert (found.name, found.reduction, found.sign) == (name, reduction, sign)
    assert found.targeted == targeted
    scaled = recognise(LOGITS, 1024 * v, LABELS, targets if targeted else None, [name])
    assert (scaled.name, scaled.reduction) == (name, "scaled")
    assert scaled.factor == pytest.approx(1024 * found.factor, rel=1e-5)
    weights = torch.linspace(1, 1.01, 9)  # no common factor: one for each sample
    told = recognise(LOGITS, v * weights[:, None], LABELS, targets if targeted else None, [name])
    assert told.reduction == "by sample"
    # cross-entropy is its stable form times 1 - p_y, and a shift changes no gradient
    assert told.name.removesuffix("_shifted") == ("ce" if name == "stable_ce" else name)
    if name != "stable_ce":
        rows = told.explained
        assert bool(rows.any())
        torch.testing.assert_close(
            told.factor[rows], (found.factor * weights)[rows], rtol=1e-3, atol=0
        )
    v[:, 0] += v.abs().amax(1) * 1e-2  # no factor at all: another loss
    assert recognise(LOGITS, v, LABELS, targets if targeted else None, [name]).name == "unknown"


def test_targets_show_in_the_logit_gradient():
    targets = (LABELS + 2) % 6
    v = logit_gradient(lambda z: cross_entropy(z, targets))  # to be descended
    found = recognise(LOGITS, v, LABELS, None, [])
    assert (found.name, found.targeted, found.sign, found.reduction) == ("ce", True, -1, "mean")
    assert torch.equal(found.label, targets)


def test_other_losses_are_not():
    smoothed = logit_gradient(lambda z: cross_entropy(z, LABELS, label_smoothing=0.01))
    assert recognise(LOGITS, smoothed, LABELS, None, []).name == "unknown"
    assert recognise(LOGITS, smoothed * torch.nan, LABELS, None, []).name == "zero"
    # nothing shows nothing, unless it is said what it is, and that can be nothing there
    nothing, leading = torch.zeros_like(smoothed), LOGITS.argmax(1)
    assert recognise(LOGITS * 1e4, nothing, leading, None, []).name == "zero"
    found = recognise(LOGITS * 1e4, nothing, leading, None, [], hint="ce")
    assert (found.name, found.reduction) == ("ce", "unknown")
    assert recognise(LOGITS * 1e4, nothing, leading, None, [], hint="stable_ce").name == "zero"
    assert recognise(LOGITS, nothing, leading, None, [], hint="ce").name == "zero"


def test_two_classes_and_one_row_have_no_factor_of_their_own():
    z, y = torch.tensor([[0.3, -0.4]]), torch.tensor([1])
    for c in (0.1, 1 / 3, 10.0):
        leaf = z.clone().requires_grad_()
        (v,) = torch.autograd.grad(cross_entropy(c * leaf, y), leaf)
        assert recognise(z, v, y, None, []).name == "unknown"
    leaf = z.clone().requires_grad_()
    (v,) = torch.autograd.grad(cross_entropy(leaf, y), leaf)
    assert recognise(z, v, y, None, []).name == "ce"


def test_masked_rows_and_rows_that_are_not_finite_are_nobodys_error():
    """Zero on purpose is no floating-point error, and one bad row does not hide the others."""
    model, x = tiny_mlp().eval(), uniform(6, 6)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 4

    def masked(z, y):
        return (cross_entropy(z, y, reduction="none") * (z.argmax(1) == y)).sum()

    with fperr.record(model, None, y, every=1, samples=6, losses=[], formats=[]) as trace:
        descent(model, x, y, masked, steps=1, size=0.0)
    own = trace.errors().set_index("sample")
    assert list(own["loss"]) == 2 * ["unknown"] + 4 * ["ce"]
    assert own["delta"].isna().tolist() == 2 * [True] + 4 * [False]
    assert list(trace.steps()["loss"]) == list(own["loss"])
    z = LOGITS.clone()
    v = logit_gradient(lambda z: cross_entropy(z, LABELS))
    z[2, 1], v[2] = torch.nan, torch.nan
    found = recognise(z, v, LABELS, None, [])
    assert (found.name, found.reduction) == ("ce", "mean")
    assert found.explained.tolist() == [i != 2 for i in range(9)]
