"""The losses as functions and modules: values, derivatives, transforms, and what they refuse."""

import math
import re

import pytest
import torch
from torch.nn import functional

import fperr
from fperr import losses
from fperr.losses import LOSSES, LOSSES_BY_NAME, Context, Loss, loss_named
from fperr.losses.comp_sum import comp_sum_values
from fperr.report import style
from tests.conftest import normal, tiny_mlp

# PyTorch's own words: of operations without a batching rule, of torch.jit, and of its compiler
QUIET = pytest.mark.filterwarnings(
    "ignore:There is a performance drop",
    "ignore:.torch.jit",
    "ignore:An output with one or more",
    "ignore:.class 'torch.autograd.function.Function'. should not be instantiated",
)
K = 5
FUNCTIONS = {
    "stable_ce": ("stable_ce", losses.StableCELoss),
    "mifpe": ("mifpe", losses.MIFPELoss),
    "tmifpe": ("tmifpe", losses.TMIFPELoss),
    "pmifpe": ("pmifpe", losses.PMIFPELoss),
    "cw": ("cw", losses.CWLoss),
    "dlr": ("dlr", losses.DLRLoss),
    "gama": ("gama", losses.GAMALoss),
    "comp_sum": ("comp_sum", losses.CompSumLoss),
    "logistic": ("accurate_ce", losses.LogisticLoss),
    "generalized_cross_entropy": ("gce", losses.GeneralizedCrossEntropyLoss),
    "mean_absolute_error": ("mae", losses.MeanAbsoluteErrorLoss),
}
RESCALED = ("mifpe", "tmifpe", "pmifpe")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
y = torch.tensor([0, 1, 2, 3, 4, 0])
TARGETS = (y + 1) % K


def logits(dtype=torch.float64, scale=3.0):
    return (scale * normal(6, K)).to(dtype).requires_grad_()


def called(name, z, label=y, **options):
    """The function of that name; GAMA's clean probabilities are uniform."""
    if name == "gama":
        options["clean"] = torch.full_like(z, 1 / z.shape[1]).detach()
    return getattr(losses, name)(z, label, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_modules_and_the_registry_are_one(name, dtype):
    z, (registered, module) = logits(dtype), FUNCTIONS[name]
    clean = torch.full_like(z, 1 / K).detach()
    loss = loss_named(registered)
    extra = {"clean": clean} if name == "gama" else {}
    for targets in (None, TARGETS):
        label = y if targets is None else targets
        context = Context(targets is not None, y, clean=clean, weight=loss.weight)
        expected = loss(z, label, context)
        for reduction in ("none", "sum", "mean"):
            found = called(name, z, targets=targets, reduction=reduction)
            reduced = expected if reduction == "none" else getattr(expected, reduction)()
            assert torch.equal(found, reduced)
            assert found.dtype == dtype
            by_module = module(reduction=reduction)(z, y, targets, **extra)
            assert torch.equal(by_module, found)


def test_every_loss_of_the_registry_has_a_function_or_is_a_shifted_one():
    named = {registered for registered, _ in FUNCTIONS.values()} | {"ce"}
    assert {loss.name for loss in LOSSES} - named == {"mifpe_shifted", "tmifpe_shifted"}
    colours = [loss.colour for loss in LOSSES]
    assert len(set(colours)) == len(colours)


@QUIET
def test_a_loss_is_added_in_one_place(monkeypatch):
    """Measured, attacked with, recorded, reported and drawn by its name, once it is registered."""
    half = Loss(
        "half", "comp_sum", comp_sum_values, "Half", "#123456", tau=0.5, full_name="Half way"
    )
    with pytest.raises(ValueError, match="unknown loss 'half'"):
        fperr.measure(tiny_mlp(), normal(2, 6), losses=["half"])
    monkeypatch.setitem(LOSSES_BY_NAME, "half", half)
    model, x, label = tiny_mlp(), normal(3, 6), torch.tensor([0, 1, 2])
    report = fperr.measure(model, x, losses=["half", "ce"], formats=["float32"], progress=False)
    frame = report.frame[report.frame["loss"] == "half"]
    assert (frame["delta"] < 1e-4).all()
    assert "Half way (half) in float32: cannot tell" in re.sub("<[^>]*>", "", report.to_html())
    assert style.colours(["half"])["half"] == style.to_rgb("#123456")
    attacked = fperr.attack(model, x, label, radius=0.1, loss="half", steps=2, box=(-9, 9))
    exact = fperr.attack(
        model, x, label, radius=0.1, loss="half", steps=2, box=(-9, 9), format="exact"
    )
    assert attacked.adversarial.shape == exact.adversarial.shape
    with fperr.record(model, x, label, losses=["half"]) as trace:
        leaf = x.clone().requires_grad_()
        half(model(leaf), label, Context()).sum().backward()
    assert "half" in set(trace.errors()["loss"])


@QUIET
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_of_torch(name):
    z = logits(scale=2.0)
    (plain,) = torch.autograd.grad(called(name, z, reduction="sum"), z)

    def of_one(row, label):
        return called(name, row[None], label[None], reduction="sum")

    by_sample = torch.func.vmap(torch.func.grad(of_one))(z.detach(), y)
    assert torch.allclose(by_sample, plain, rtol=1e-10, atol=1e-12)
    torch.compiler.reset()
    compiled = torch.compile(lambda a, b: called(name, a, b, reduction="sum"), backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(z, y), z)
    assert torch.allclose(found, plain, rtol=1e-10, atol=1e-12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert called(name, logits(torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in RESCALED])
def test_second_derivatives_are_right(name):
    z = logits(scale=1.0)
    assert torch.autograd.gradcheck(lambda t: called(name, t, reduction="none"), z)
    assert torch.autograd.gradgradcheck(lambda t: called(name, t, reduction="none"), z)


@QUIET
@pytest.mark.parametrize("name", RESCALED)
def test_second_derivatives_of_a_detached_factor_are_refused(name):
    z = logits()
    (gradient,) = torch.autograd.grad(called(name, z), z, create_graph=True)
    with pytest.raises(RuntimeError, match=f"second derivative of '{name}'.*use fperr.losses"):
        gradient.square().sum().backward()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.func.hessian(lambda t: called(name, t))(z.detach())
    again = torch.autograd.grad(losses.stable_ce(z, y), z, create_graph=True)[0]
    again.square().sum().backward()  # the remedy


@QUIET
def test_the_hessian_of_cross_entropy():
    z = logits()

    def of_one(row, label):
        return losses.cross_entropy(row[None], label[None])

    hessian = torch.func.vmap(torch.func.hessian(of_one))
    p = z.detach().softmax(1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    assert torch.allclose(hessian(z.detach(), y), expected, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_masked_classes_count_for_nothing(name):
    z = logits()
    masked = torch.cat([z, torch.full((6, 1), -math.inf).double()], 1).detach().requires_grad_()
    if name == "gama":
        pytest.skip("its clean probabilities have as many classes as the logits")
    assert torch.allclose(called(name, masked), called(name, z), rtol=1e-12)
    (gradient,) = torch.autograd.grad(called(name, masked), masked)
    (expected,) = torch.autograd.grad(called(name, z), z)
    assert torch.allclose(gradient[:, :K], expected, rtol=1e-10)
    assert not gradient[:, K].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["stable_ce", "logistic", "comp_sum", "mean_absolute_error"])
def test_a_class_alone_has_no_gradient(name, dtype):
    z = torch.full((2, 4), -math.inf, dtype=dtype)
    z[:, 1] = torch.tensor([3.0, -2.0], dtype=dtype)
    z.requires_grad_()
    value = called(name, z, torch.tensor([1, 1]), reduction="none")
    assert value.tolist() == [-math.inf if name == "stable_ce" else 0.0] * 2
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert not gradient.any()


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.7, 2.0, 3.0])
def test_comp_sum_losses_are_functions_of_p(tau):
    z = logits()
    p = z.detach().softmax(1).gather(1, y[:, None])[:, 0]
    expected = -p.log() if tau == 1 else (p ** (tau - 1) - 1) / (1 - tau)
    assert torch.allclose(losses.comp_sum(z, y, tau=tau, reduction="none"), expected, rtol=1e-12)
    # where p is 1 or 0 to float32, the gradient has its digits
    for margin in (80.0, -80.0):
        sharp = torch.tensor([[margin, 0.0, 1.0]], requires_grad=True)
        wide = sharp.detach().double().requires_grad_()
        loss = losses.comp_sum(sharp, torch.tensor([0]), tau=tau)
        if not loss.isfinite():
            continue  # e^80 to a power
        found = torch.autograd.grad(loss, sharp)[0].double()
        truth = torch.autograd.grad(losses.comp_sum(wide, torch.tensor([0]), tau=tau), wide)[0]
        size = truth.norm()
        if size > 1e-36:  # else float32 has no such numbers
            assert (found - truth).norm() <= 200 * 2.0**-24 * size


@pytest.mark.parametrize("shape", [(6, K), (4, K, 3), (2, K, 3, 2), (K,)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_has_the_arguments_of_pytorchs(shape, reduction, smoothing, weighted):
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 2e-6), (torch.float16, 4e-3)):
        z = (3 * normal(*shape)).to(dtype).requires_grad_()
        target = torch.randint(K, (*shape[:1], *shape[2:])) if len(shape) > 1 else torch.tensor(2)
        if target.ndim:
            target.view(-1)[0] = -100
        options = {"reduction": reduction, "label_smoothing": smoothing}
        options["weight"] = (torch.rand(K) + 0.1).to(dtype) if weighted else None
        ours, theirs = (
            f(z, target, **options) for f in (losses.cross_entropy, functional.cross_entropy)
        )
        assert ours.dtype == theirs.dtype
        assert torch.allclose(ours, theirs, rtol=close, atol=close)
        gradients = [torch.autograd.grad(loss.sum(), z)[0] for loss in (ours, theirs)]
        assert torch.allclose(*gradients, rtol=close, atol=close)
        module = losses.CrossEntropyLoss(**options)(z, target)
        assert torch.equal(module, ours)


def test_small_values_of_cross_entropy_are_there():
    z = torch.tensor([[40.0, 0.0, 0.0]])
    assert float(functional.cross_entropy(z, torch.tensor([0]))) == 0
    assert float(losses.cross_entropy(z, torch.tensor([0]))) == pytest.approx(2 * math.exp(-40))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_linear_layer_in_pieces_is_the_same(reduction):
    hidden, weight, bias = (normal(*s).double().requires_grad_() for s in ((10, 4), (7, 4), (7,)))
    label = torch.tensor([0, 1, 2, 3, -100, 5, 6, 0, 1, 2])
    ours = losses.linear_cross_entropy(
        hidden, weight, label, bias=bias, reduction=reduction, rows_at_once=3
    )
    theirs = functional.cross_entropy(
        functional.linear(hidden, weight, bias), label, reduction=reduction
    )
    assert torch.allclose(ours, theirs, rtol=1e-12)
    inputs = (hidden, weight, bias)
    pairs = (torch.autograd.grad(loss.sum(), inputs) for loss in (ours, theirs))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(*pairs, strict=True))


def test_a_linear_layer_in_pieces_keeps_no_logits():
    """What autograd saves has the size of a piece's inputs, and not of all logits."""
    hidden, weight = normal(64, 8).requires_grad_(), normal(500, 8).requires_grad_()
    saved = []

    def count(loss):
        saved.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append((t.data_ptr(), t.numel())) or t, lambda t: t
        )
        with hooks:
            loss()
        return sum(dict(saved).values())  # of each storage, once

    label = torch.arange(64)
    in_pieces = count(lambda: losses.linear_cross_entropy(hidden, weight, label, rows_at_once=4))
    at_once = count(lambda: losses.cross_entropy(hidden @ weight.T, label))
    assert in_pieces * 5 < at_once


Z = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.5, 0.0, 3.0, 1.0]])
Y = torch.tensor([0, 2])
BAD = {
    "labels out of range": (lambda f: f(Z, torch.tensor([0, 4])), "y must hold classes from 0"),
    "negative labels": (lambda f: f(Z, torch.tensor([0, -1])), "got values from -1 to 0: give"),
    "float labels": (lambda f: f(Z, Y.float()), r"integer dtype, got torch.float32: use y.long"),
    "too few labels": (lambda f: f(Z, Y[:1]), r"y must be \(2,\) for logits \(2, 4\), got \(1,\)"),
    "probabilities": (lambda f: f(Z.softmax(1), Y), "these are probabilities; give what the model"),
    "one class": (lambda f: f(Z[:, :1], Y * 0), r"K >= 2, got \(2, 1\): give one row a sample"),
    "an empty batch": (lambda f: f(Z[:0], Y[:0]), "at least one sample, got .*leave out empty"),
    "a vector": (lambda f: f(Z[0], Y[:1]), r"\(batch, K\) with K >= 2, got \(4,\)"),
    "integers": (lambda f: f(Z.long(), Y), "got torch.int64: convert them with .float"),
    "a list": (lambda f: f(Z.tolist(), Y), "must be a torch.Tensor, got list: give torch.tensor"),
    "NaN": (lambda f: f(Z + torch.tensor([[0.0], [math.nan]]), Y), "got NaN at sample 1: leave"),
    "inf": (lambda f: f(Z.masked_fill(Z == 3, math.inf), Y), "got inf at sample 1: leave such"),
    "nothing left": (lambda f: f(Z.masked_fill(Z > -9, -math.inf), Y), "every class is masked"),
    "reduction": (lambda f: f(Z, Y, reduction="avg"), "'none', 'sum', 'mean', got 'avg': use 'sum"),
    "targets equal y": (
        lambda f: f(Z, Y, targets=Y), "targets must differ from y, got class 0 for both at sample 0"
    ),
    "no classes": (lambda f: f(Z, None), "y must be given, got None: give the true classes, or"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("name", ["stable_ce", "tmifpe", "cw", "generalized_cross_entropy"])
def test_bad_input_is_answered_with_expected_got_and_remedy(name, fault):
    call, text = BAD[fault]
    with pytest.raises((TypeError, ValueError), match=text):
        call(getattr(losses, name))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: losses.cross_entropy(Z, Z.softmax(1)), r"target.argmax\(1\) for rows of prob"),
        (lambda: losses.cross_entropy(Z, Y, label_smoothing=2), "from 0 to 1, got 2: give the"),
        (lambda: losses.cross_entropy(Z, Y, weight=torch.ones(3)), r"weight must be \(4,\), got"),
        (lambda: losses.cross_entropy(Z, Y, size_average=True), "must be left out, got True"),
        (lambda: losses.cross_entropy(Z, torch.tensor([0, 7])), "target must hold classes from 0"),
        (lambda: losses.mifpe(Z, Y, T=-1), "T must be finite and above 0, got -1: leave it out"),
        (lambda: losses.comp_sum(Z, Y, tau=math.inf), "tau must be finite and at least 0, got inf"),
        (lambda: losses.gama(Z, Y, clean=Z, weight="much"), "weight must be a number, got str"),
        (lambda: losses.dlr(Z[:, :2], Y * 0), "needs at least 3 classes here, got 2: leave it out"),
        (lambda: losses.dlr(Z, None, targets=Y), "needs the true label: give y as well"),
        (lambda: losses.linear_cross_entropy(Z, normal(5, 3), Y), r"weight must be \(K, 4\)"),
        (lambda: losses.linear_cross_entropy(Z[None], Z, Y), "hidden must be a matrix, got"),
    ],
)
def test_more_bad_input(call, text):
    with pytest.raises((TypeError, ValueError), match=text):
        call()


def test_one_hot_logits_are_no_probabilities():
    assert losses.cw(torch.eye(3), torch.arange(3)).isfinite()
    assert losses.cw(torch.tensor([[0.5, 0.5]]) * 1.01, torch.tensor([0])).isfinite()


@pytest.mark.parametrize("function", [losses.cross_entropy, losses.linear_cross_entropy])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_an_ignored_class_may_be_one_of_the_model(function, dtype):
    z, label = normal(4, K).requires_grad_(), torch.tensor([0, 2, 1, 2]).to(dtype)
    arguments = (z,) if function is losses.cross_entropy else (z, torch.eye(K))
    found = function(*arguments, label, ignore_index=2)
    expected = functional.cross_entropy(z, label.long(), ignore_index=2)
    assert torch.allclose(found, expected)
    (gradient,) = torch.autograd.grad(found, z)
    assert not gradient[[1, 3]].any()
    with pytest.raises(ValueError, match="must hold classes from 0 to 4, got values from 0 to 156"):
        function(*arguments, torch.tensor([0, 1, 156, 3], dtype=torch.uint8))


def test_an_ignored_row_may_hold_nan():
    z = normal(3, K)
    z[1] = math.nan
    z.requires_grad_()
    losses.cross_entropy(z, torch.tensor([0, -100, 2])).backward()
    assert bool(z.grad.isfinite().all())


ORDERS = [torch.func.jacfwd, torch.func.jacrev]


@QUIET
@pytest.mark.parametrize("outer", ORDERS)
@pytest.mark.parametrize("inner", ORDERS)
@pytest.mark.parametrize("name", ["stable_ce", "logistic", "mean_absolute_error"])
def test_second_derivatives_are_right_in_every_mode(name, outer, inner):
    z = normal(K).double()

    def plainly(z):
        p = z.softmax(0)[0]
        return {
            "stable_ce": z[1:].logsumexp(0) - z[0],
            "logistic": -p.log(),
            "mean_absolute_error": 1 - p,
        }[name]

    def own(z):
        return getattr(losses, name)(z[None], y[:1], reduction="sum")

    found = outer(inner(own))(z)
    assert torch.allclose(found, torch.func.hessian(plainly)(z), rtol=1e-12, atol=1e-14)


@QUIET
@pytest.mark.parametrize("outer", ORDERS)
@pytest.mark.parametrize("inner", ORDERS)
@pytest.mark.parametrize("name", RESCALED)
def test_wrong_curvature_is_refused_in_every_mode(name, outer, inner):
    def own(z):
        return getattr(losses, name)(z[None], y[:1], reduction="sum")

    assert inner(own)(normal(K)).shape == (K,)
    with pytest.raises(RuntimeError, match=f"second derivative of '{name}' must not be used"):
        outer(inner(own))(normal(K))


@QUIET
def test_wrong_curvature_is_not_given_by_compiled_functions():
    z = logits(torch.float32)
    compiled = torch.compile(
        lambda z: losses.mifpe(z, y, reduction="sum"), backend="eager", fullgraph=True
    )
    (gradient,) = torch.autograd.grad(compiled(z), z, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.square().sum(), z)


def test_clean_probabilities_are_constants_of_the_right_shape():
    z, clean = logits(), logits()
    losses.gama(z, y, clean=clean.softmax(1)).backward()
    assert clean.grad is None
    with pytest.raises(ValueError, match=r"clean must be \(6, 5\) like the logits, got \(6, 4\)"):
        losses.gama(z, y, clean=clean[:, :4])


def test_a_mean_of_half_losses_beyond_their_range_is_finite():
    hidden, weight = torch.eye(4).half(), 30_000 * torch.eye(4).half()
    label = torch.tensor([1, 2, 3, 0])
    found = losses.linear_cross_entropy(hidden, weight, label)
    assert found.dtype == torch.float16
    assert float(found) == float(torch.tensor(30_000.0).half())


@pytest.mark.parametrize("dtype", DTYPES)
def test_probabilities_are_told_and_few_logits_are_taken_for_them(dtype):
    for classes in (2, 10, 1000):
        rows = (3 * normal(20, classes)).softmax(1).to(dtype)
        with pytest.raises(ValueError, match="these are probabilities"):
            losses.stable_ce(rows, torch.zeros(20, dtype=torch.long))
        # logits which sum to 2 are none, however wide the format rounds
        losses.stable_ce(2 * rows, torch.zeros(20, dtype=torch.long))


@QUIET
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [-30.0, -10.0, 0.5, 10.0, 17.0, 20.0, 30.0, 80.0])
@pytest.mark.parametrize("outer", ORDERS)
@pytest.mark.parametrize("inner", ORDERS)
def test_second_derivatives_do_not_cancel_at_large_margins(dtype, margin, outer, inner):
    """d2/dz_y2 of cross-entropy is P p_y: P = 1 - p_y is tiny, and PyTorch's 1 - sigmoid is 0."""
    z = torch.tensor([margin, 0.0, 0.0, 0.0], dtype=dtype)

    def own(z):
        return losses.cross_entropy(z[None], y[:1], reduction="sum")

    found = outer(inner(own))(z)[0, 0].double()
    odds = torch.tensor(3.0).double().log() - margin
    expected = odds.sigmoid() * (-odds).sigmoid()
    # some ten operations, and the condition |odds| of the exponentials
    tolerance = (20 + 4 * abs(float(odds))) * torch.finfo(dtype).eps
    assert float((found - expected).abs() / expected) <= tolerance


def test_pytorchs_second_derivative_does_cancel():
    """Negative control of the test above."""
    z = torch.tensor([20.0, 0.0, 0.0, 0.0])
    hessian = torch.func.hessian(lambda z: functional.cross_entropy(z[None], y[:1]))(z)
    assert float(hessian[0, 0]) == 0.0


def test_pieces_have_rows():
    with pytest.raises(ValueError, match="rows_at_once must be 1 or more, got 0: leave it out"):
        losses.linear_cross_entropy(normal(4, K), torch.eye(K), y[:4], rows_at_once=0)
