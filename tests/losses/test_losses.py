"""Every loss against the closed form of its logit gradient in mpmath, which shares no code."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fperr.exact.logit_gradient import logit_gradient
from fperr.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, of_dtype
from fperr.losses import Context, loss_named
from fperr.theory.scaling import margin
from tests.conftest import normal

MP = mpmath.MPContext()
MP.dps = 60
ALL = ("ce", "stable_ce", "mifpe", "mifpe:T=4", "mifpe_shifted", "tmifpe", "tmifpe_shifted")
ALL += ("cw", "dlr")


def computed(name, logits, label, *, targeted=False, y=None):
    """v_hat, and the scale that the loss used."""
    leaf = logits.clone().requires_grad_()
    context = Context(targeted, y)
    loss = loss_named(name)
    (v,) = torch.autograd.grad(loss(leaf, label, context).sum(), leaf)
    return v, loss.scale(logits, label, context).c


def exact(name, logits, label, c, *, targeted=False, y=None):
    """v (batch, K) as lists of mpf, at the logits and scale as they are."""
    return [
        logit_gradient(
            loss_named(name).kind,
            MP,
            [MP.mpf(value) for value in z.tolist()],
            int(label[i]),
            c=MP.mpf(float(c[i])),
            targeted=targeted,
            y=None if y is None else int(y[i]),
        )
        for i, z in enumerate(logits.double())
    ]


def relative_error(v, reference):
    norm = MP.sqrt(MP.fsum(r * r for r in reference))
    error = MP.sqrt(
        MP.fsum((MP.mpf(a) - r) ** 2 for a, r in zip(v.tolist(), reference, strict=True))
    )
    return float(error / norm)


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("name", ALL)
def test_gradient_in_float64_is_the_closed_form(name, targeted):
    logits = normal(40, 7).double() * 3
    order = logits.argsort(1, descending=True)
    label = torch.where(torch.arange(40) % 2 == 0, order[:, 0], order[:, 1])
    y = torch.where(torch.arange(40) % 2 == 0, order[:, 1], order[:, 0])
    v, c = computed(name, logits, label, targeted=targeted, y=y)
    for row, reference in zip(
        v, exact(name, logits, label, c, targeted=targeted, y=y), strict=True
    ):
        # u/(1 - p_l) from the cancellation in p_l - 1, with margins below 15 and T below 5,
        # and at most 100 roundings elsewhere
        assert relative_error(row, reference) < 2.0**-53 * (100 + 10 * math.exp(15))
        if loss_named(name).kind != "cross_entropy" or loss_named(name).is_scaled:
            assert relative_error(row, reference) < 2.0**-53 * (100 + 10 * math.exp(5))


def test_a_wrong_coefficient_is_seen():
    """Negative control: one coefficient of the closed form off by one part in 1e9."""
    logits = normal(1, 7).double()
    label = logits.argmax(1)
    v, c = computed("mifpe", logits, label)
    reference = exact("mifpe", logits, label, c)[0]
    reference[int(label)] *= 1 + MP.mpf("1e-9")
    assert relative_error(v[0], reference) > 1e-10


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.floats(-1e4, 1e4, width=16), min_size=2, max_size=9),
    label=st.integers(0, 8),
    targeted=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_scales_and_gradients_are_finite_for_any_margin(logits, label, targeted, dtype):
    """Ties, K = 2, huge and tiny margins: a finite T and a finite gradient, never NaN."""
    z = torch.tensor([logits], dtype=dtype)
    chosen = torch.tensor([label % len(logits)])
    for name in ("ce", "stable_ce", "mifpe", "tmifpe", "tmifpe_shifted", "cw"):
        v, c = computed(name, z, chosen, targeted=targeted)
        scale = loss_named(name).scale(z, chosen, Context(targeted))
        assert v.isfinite().all()
        assert c.isfinite().all()
        assert scale.T.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 10.0, 100.0, 1000.0])
def test_stable_ce_has_ces_direction_without_its_errors(dtype, delta):
    K = 10
    logits = normal(30, K).to(dtype)
    logits[:, 3] += delta
    label = torch.full((30,), 3)
    v, c = computed("stable_ce", logits, label)
    bound = 2 * K * of_dtype(dtype).unit_roundoff  # O(K u): theory gives at most 11.7 u at K = 10
    for row, reference in zip(v, exact("stable_ce", logits, label, c), strict=True):
        assert relative_error(row, reference) < bound
    direction = exact("ce", logits, label, torch.ones(30))
    stable = exact("stable_ce", logits, label, c)
    for a, b in zip(direction, stable, strict=True):
        factor = a[3] / b[3]  # 1 - p_l
        assert all(
            abs(x - factor * y) <= abs(factor) * MP.mpf("1e-55") for x, y in zip(a, b, strict=True)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_stable_ce_is_a_softmax_over_the_other_classes(dtype, targeted):
    """Its gradient bit for bit, rounded once to a half format; its value to its digits."""
    logits, label = (normal(50, 8) * 10).to(dtype), torch.arange(50) % 8
    upstream = (normal(50, seed=5) * 100).to(dtype)
    own, sign = label[:, None], -1.0 if targeted else 1.0
    worked = logits.float() if dtype in (torch.float16, torch.bfloat16) else logits
    others = worked.scatter(1, own, -math.inf)
    v = others.softmax(1).scatter(1, own, -1.0)
    expected = (sign * upstream.to(worked.dtype)[:, None] * v).to(dtype)
    leaf = logits.clone().requires_grad_()
    found = loss_named("stable_ce")(leaf, label, Context(targeted))
    assert torch.equal(torch.autograd.grad(found, leaf, upstream)[0], expected)
    wide = logits.double()
    value = wide.scatter(1, own, -math.inf).logsumexp(1) - wide.gather(1, own)[:, 0]
    # K roundings of the sum, one of each difference, and the last one
    limit = 20 * torch.finfo(dtype).eps / 2 * (1 + wide.abs().amax(1))
    assert ((found.double() - sign * value).abs() <= limit).all()


@pytest.mark.parametrize("name", [*ALL, "pmifpe", "gama"])
def test_no_loss_waits_for_the_host(name):
    """On the meta device there are no values: anything that asks for one raises."""
    logits = torch.empty(5, 10, device="meta", requires_grad=True)
    label = torch.zeros(5, dtype=torch.int64, device="meta")
    for targeted in (False, True):
        loss = loss_named(name)(logits, label, Context(targeted, y=label, clean=logits.detach()))
        assert torch.autograd.grad(loss.sum(), logits)[0].shape == (5, 10)


def test_plain_ce_does_lose_its_gradient_there():
    """Negative control for the test above."""
    logits = torch.tensor([[30.0, 0.0, -1.0]])
    v, c = computed("ce", logits, torch.tensor([0]))
    assert relative_error(v[0], exact("ce", logits, torch.tensor([0]), c)[0]) > 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["ce", "stable_ce", "mifpe", "tmifpe", "cw"])
def test_targeted_gradients_are_the_untargeted_ones_with_the_sign_changed(name, dtype):
    assert loss_named(name).targeted_is_negated
    logits = (normal(50, 6) * 5).to(dtype)
    label = torch.arange(50) % 6
    assert torch.equal(
        computed(name, logits, label)[0], -computed(name, logits, label, targeted=True)[0]
    )


def test_targeted_dlr_is_another_gradient():
    """Negative control: dlr is not declared to be negated, and is not."""
    logits, label = normal(5, 6), torch.zeros(5, dtype=torch.int64)
    y = torch.ones(5, dtype=torch.int64)
    targeted = computed("dlr", logits, label, targeted=True, y=y)[0]
    assert not loss_named("dlr").targeted_is_negated
    assert not torch.equal(computed("dlr", logits, label)[0], -targeted)


def test_values_of_the_losses():
    z = torch.tensor([[3.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    y, target = torch.tensor([0]), torch.tensor([2])
    plain, aimed = Context(), Context(targeted=True, y=y)
    ce = math.log(sum(map(math.exp, [3, 1, 0, -1])))
    assert float(loss_named("ce")(z, y, plain)) == pytest.approx(ce - 3, abs=1e-14)
    assert float(loss_named("ce")(z, target, aimed)) == pytest.approx(-ce, abs=1e-14)
    others = math.log(sum(map(math.exp, [1, 0, -1])))
    assert float(loss_named("stable_ce")(z, y, plain)) == pytest.approx(others - 3, abs=1e-14)
    assert float(loss_named("cw")(z, y, plain)) == -2
    assert float(loss_named("cw")(z, target, aimed)) == -3
    assert float(loss_named("dlr")(z, y, plain)) == pytest.approx(-2 / 3, abs=1e-15)
    assert float(loss_named("dlr")(z, target, aimed)) == pytest.approx(-3 / 3.5, abs=1e-15)
    scaled = math.log(sum(math.exp(v / 2) for v in [3, 1, 0, -1])) - 1.5
    assert float(loss_named("mifpe")(z, y, plain)) == pytest.approx(scaled, abs=1e-14)
    assert float(loss_named("mifpe_shifted")(z, y, plain)) == pytest.approx(scaled, abs=1e-14)


def test_shifting_before_scaling_removes_a_common_offset():
    """float16, logits N(0, 10^2) + 1000, K = 10, T = 1: the published medians of the error of v."""
    logits = (normal(300, 10) * 10 + 1000).to(torch.float16)
    label = logits.argmax(1)
    keep = margin(logits) > 0

    def median(name):
        v, c = computed(name, logits, label)
        errors = [
            relative_error(a, b) for a, b in zip(v, exact(name, logits, label, c), strict=True)
        ]
        return float(torch.tensor(errors)[keep].median())

    # medians of other draws of 300 scatter by less than a factor of 1.5
    assert 7.0e-3 / 1.5 < median("mifpe") < 7.0e-3 * 1.5
    assert 3.8e-4 / 1.5 < median("mifpe_shifted") < 3.8e-4 * 1.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xent", "unknown loss 'xent': expected one of ce, mifpe, tmifpe"),
        ("mifpe:T=0", "T must be a positive finite number, got '0'"),
        ("mifpe:T=inf", "T must be a positive finite number, got 'inf'"),
        ("mifpe:T=x", "T must be a positive finite number, got 'x'"),
        ("ce:T=2", "unknown loss 'ce:T=2'"),
    ],
)
def test_names_that_are_refused(name, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        loss_named(name)


def test_too_few_classes_and_a_missing_label_are_refused():
    z, label = torch.zeros(1, 2), torch.tensor([0])
    with pytest.raises(ValueError, match="loss 'dlr' needs at least 3 classes here, got 2"):
        loss_named("dlr")(z, label, Context())
    with pytest.raises(ValueError, match="targeted 'dlr' needs the true label"):
        loss_named("dlr")(torch.zeros(1, 5), label, Context(targeted=True))


def test_formats_of_logits_set_the_scale():
    z = torch.tensor([[2.0, 0.0, -1.0]])
    for fmt in (FLOAT16, BFLOAT16, FLOAT32, FLOAT64):
        c = loss_named("mifpe").scale(z.to(fmt.dtype), torch.tensor([0]), Context()).c
        assert c.dtype == fmt.dtype
        assert float(c) == 0.5
