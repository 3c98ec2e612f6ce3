"""The attack's own loss, given as a function: its own error is in `delta`, and is the right one."""

import math

import mpmath
import pytest
import torch
from torch.nn import functional as F

import fperr
from fperr import zoo
from fperr.errors import ModelError, UnsupportedOperationError
from fperr.exact.loss_function import LossGradient
from tests.attacks.test_attacks import uniform
from tests.conftest import normal, tiny_mlp
from tests.recording.test_recording import descent

LITTLE = {"every": 1, "losses": [], "formats": []}


def double_softmax(logits, y, targets):
    """The usual mistake: cross-entropy of probabilities, to be ascended."""
    p = logits.softmax(1)
    if targets is None:
        return F.cross_entropy(p, y, reduction="none")
    return -F.cross_entropy(p, targets, reduction="none")


def margin_loss(logits, y, targets):
    label = y if targets is None else targets
    own = logits.gather(1, label[:, None])[:, 0]
    other = logits.scatter(1, label[:, None], -math.inf).amax(1)
    return other - own if targets is None else own - other


def sorted_ratio(logits, y, targets):
    del targets
    ranked, order = logits.sort(dim=1)
    other = torch.where(order[:, -1] == y, ranked[:, -2], ranked[:, -1])
    own = logits.gather(1, y[:, None])[:, 0]
    return (other - own) / (ranked[:, -1] - ranked[:, -3] + 1e-12)


def focal(logits, y, targets):
    del targets
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    return -((1 - p) ** 2) * p.log()


def one_hot_distance(logits, y, targets):
    del targets
    wanted = F.one_hot(y, logits.shape[1]).to(logits)
    return F.mse_loss(logits.softmax(1), wanted, reduction="none").sum(1)


def runner_up(logits, y, targets):
    del targets
    return logits.topk(2).values.sum(1) - 2 * logits.gather(1, y[:, None])[:, 0]


LOSSES = [
    double_softmax,
    margin_loss,
    sorted_ratio,
    focal,
    one_hot_distance,
    runner_up,
    lambda z, y, _: F.cross_entropy(z, y, reduction="none", label_smoothing=0.1),
    lambda z, y, _: z.logsumexp(1) - z[torch.arange(len(z)), y],
    lambda z, y, _: F.multi_margin_loss(z, y, reduction="none"),
    lambda z, y, _: F.binary_cross_entropy_with_logits(
        z, F.one_hot(y, z.shape[1]).to(z), reduction="none"
    ).sum(1),
    lambda z, _, __: F.kl_div(z.log_softmax(1), torch.full_like(z, 0.1), reduction="none").sum(1),
]


def by_mpmath(z, y):
    """The dL/dz of `double_softmax` at float logits, from the formulas."""
    logits = [mpmath.mpf(value) for value in z.double().tolist()]
    p = softmax(logits)
    w = [q - (j == y) for j, q in enumerate(softmax(p))]
    mean = mpmath.fsum(a * b for a, b in zip(w, p, strict=True))
    return [b * (a - mean) for a, b in zip(w, p, strict=True)]


def softmax(numbers):
    exponentials = [mpmath.exp(n - max(numbers)) for n in numbers]
    total = mpmath.fsum(exponentials)
    return [e / total for e in exponentials]


def apart(computed, exact):
    pairs = list(zip(computed.double().tolist(), exact, strict=True))
    error = mpmath.fsum((mpmath.mpf(a) - b) ** 2 for a, b in pairs)
    return float(mpmath.sqrt(error / mpmath.fsum(b * b for _, b in pairs)))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_its_own_error_is_that_of_mpmath(fashion, reduction):
    """On a trained network the loss loses up to all digits; the network alone 1e-7."""
    images, model = fashion.first(6), zoo.load("fashion_standard")
    x, y = images.x, images.y

    def attack():
        leaf = x.clone().requires_grad_()
        values = double_softmax(model(leaf), y, None)
        getattr(values, reduction)().backward()

    with fperr.record(model, None, y, loss=double_softmax, samples=6, **LITTLE) as trace:
        attack()
    own, steps = trace.errors(), trace.steps()
    assert set(own["loss"]) == {"function double_softmax"} == set(steps["loss"])
    assert set(steps["reduction"]) == {reduction}
    assert bool(own["is_certified"].all())
    assert own["network_delta"].isna().all()
    factor = 1.0 if reduction == "sum" else 1 / 6
    with mpmath.workdps(60):
        for i, row in steps.iterrows():
            z, v = (torch.tensor(row[n]) for n in ("logits", "logit_gradient"))
            wanted = apart(v / factor, by_mpmath(z, int(y[i])))
            assert own["logit_gradient_delta"][i] == pytest.approx(wanted, rel=1e-6)
            # the network passes its error on, and adds 1e-7 of its own
            assert wanted / 3 < own["delta"][i] < 3 * wanted
    assert own["delta"].max() > 0.5 > 1e-4 > own["delta"].min()
    with (
        pytest.warns(UserWarning, match="stands in network_delta"),
        fperr.record(model, None, y, samples=6, **LITTLE) as trace,
    ):
        attack()
    own = trace.errors()
    assert own["delta"].isna().all()
    assert (own["network_delta"] < 1e-6).all()


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_functions_are_exact(loss, is_masked):
    """Against float64 at logits that cost no digits, and mpmath's where it is written out."""
    z, y = normal(1, 10) * 3, torch.tensor([3])
    if is_masked:
        z[0, 5] = -math.inf
    leaf = z.double().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf, y, None).sum(), leaf)
    if not bool(wanted.isfinite().all()):
        pytest.skip("PyTorch's own gradient is not finite")
    exact = LossGradient(lambda logits: loss(logits, y, None), 10, z.device)
    assert exact.is_function_at(z)
    found = exact.enclosed(z, 66)
    assert found.log2_error <= -66
    numbers = torch.tensor([float(n) for n in found.midpoint.reshape(-1)], dtype=torch.float64)
    torch.testing.assert_close(numbers, wanted[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", [double_softmax, margin_loss, focal])
@pytest.mark.parametrize("is_targeted", [False, True])
def test_functions_in_attacks(loss, is_targeted):
    if is_targeted and loss is focal:
        pytest.skip("has no targeted form")
    model, x, y = tiny_mlp(), uniform(5, 6), torch.arange(5) % 4
    targets = (y + 1) % 4 if is_targeted else None

    def objective(z, _):
        return loss(z, y, targets).sum()

    with fperr.record(model, None, y, targets=targets, loss=loss, samples=5, **LITTLE) as trace:
        descent(model, x, y, objective, steps=2)
    own = trace.errors()
    assert set(own["loss"]) == {f"function {loss.__name__}"}
    assert own["delta"].between(0, 1e-4).all()
    assert own["delta"].max() > 0
    assert set(trace.steps()["factor"]) == {1.0}
    assert trace.diagnosis() == []


@pytest.mark.parametrize("given", [None, double_softmax])
def test_weights_of_samples_are_fitted(fashion, given):
    images, model = fashion.first(8), zoo.load("fashion_adversarial")
    weights = torch.linspace(0.3, 2.7, 8)

    def objective(z, y):
        loss = F.cross_entropy(z, y, reduction="none") if given is None else given(z, y, None)
        return (weights * loss).sum()

    with (
        pytest.warns(UserWarning, match="a factor of its own on its loss in step 0 to 1"),
        fperr.record(model, None, images.y, loss=given, samples=8, **LITTLE) as trace,
    ):
        descent(model, images.x, images.y, objective, steps=2)
    steps, own = trace.steps(), trace.errors()
    assert set(steps["reduction"]) == {"by sample"}
    is_told = steps["loss"] != "unknown"
    assert is_told.mean() > 0.5
    wanted = weights.double().numpy()[steps["sample"]]
    ratio = steps["factor"] / wanted
    assert ratio[is_told].between(0.99, 1.01).all()
    assert steps["factor"][~is_told].isna().all()
    # the factor is a number of its own row: the others are at their place
    assert own["delta"].notna().tolist() == is_told.tolist()
    assert set(own["compared_with"][is_told]) == {"loss, factor fitted by sample"}
    assert own["network_delta"].notna().tolist() == (~is_told).tolist()


def test_a_function_that_the_attack_does_not_follow():
    model, x, y = tiny_mlp(), uniform(5, 6), torch.arange(5) % 4
    with (
        pytest.warns(UserWarning, match=r"does not explain dL/dz in step 0 to 1 \(2 of 2 steps\)"),
        fperr.record(model, None, y, loss=double_softmax, **LITTLE) as trace,
    ):
        descent(model, x, y, steps=2)
    assert set(trace.errors()["loss"]) == {"ce"}
    assert trace.errors()["delta"].notna().all()


def counting():
    calls = []

    def loss(z, y, targets):
        del targets
        calls.append(None)
        return F.cross_entropy(z, y, reduction="none") * len(calls)

    return loss


@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        (lambda z, y, _: F.cross_entropy(z, y), ValueError, r"one value.*got \(\): leave out its"),
        (lambda z, y, _: torch.ones(len(z)) * y, ValueError, "has no gradient"),
        (lambda z, y, _: z.lgamma()[:, 1] * y, UnsupportedOperationError, "aten.lgamma.default"),
        (
            lambda z, y, _: F.cross_entropy(z, y, reduction="none") * (2 if z[0, 0] < 1e30 else 1),
            ModelError,
            "control flow that depends on the logits",
        ),
    ],
)
def test_functions_that_cannot_be_used(loss, error, match):
    model, x, y = tiny_mlp(), uniform(4, 6), torch.arange(4) % 4

    def attack(objective):
        leaf = x.clone().requires_grad_()
        objective(model(leaf)).sum().backward()

    with pytest.raises(error, match=match), fperr.record(model, None, y, loss=loss, **LITTLE):
        attack(lambda z: (z * 0 + 1).sum() + z.sum() * 0 if error is ValueError else loss(z, y, 0))


def test_what_a_function_without_exact_meaning_is_told_to_do_helps():
    """The remedies of `UnsupportedOperationError`: other operations, or no function."""
    model, x, y = tiny_mlp(), uniform(4, 6), torch.arange(4) % 4

    def by_norms(z, y, targets):
        del targets
        return torch.linalg.matrix_norm(z[:, None] * z[:, :, None], ord=2) - z[:, 0] * y

    def by_sums(z, y, targets):
        del targets
        return z.square().sum(1) - z[:, 0] * y

    def attack():
        leaf = x.clone().requires_grad_()
        by_sums(model(leaf), y, None).sum().backward()

    message = "leave it out, and errors are those of the network alone"
    with pytest.raises(UnsupportedOperationError, match=message):
        LossGradient(lambda z: by_norms(z, y[:1], None), 4, x.device)
    with fperr.record(model, None, y, loss=by_sums, **LITTLE) as trace:
        attack()
    assert trace.errors()["delta"].notna().all()
    with (
        pytest.warns(UserWarning, match="none of those"),
        fperr.record(model, None, y, **LITTLE) as left,
    ):
        attack()
    assert left.errors()["network_delta"].notna().all()


def test_values_that_depend_on_more_than_the_logits_are_seen():
    z, y = normal(1, 4), torch.tensor([1])
    loss = counting()
    assert not LossGradient(lambda logits: loss(logits, y, None), 4, z.device).is_function_at(z)
