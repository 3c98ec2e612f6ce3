"""What is computed from weights alone: taken in float64 where an operation has no exact meaning."""

import copy

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from fperr import exact
from fperr.errors import (
    CaptureAuditError,
    ContradictedError,
    ModelError,
    UnsupportedOperationError,
)
from fperr.exact.computed_constants import constant_values
from fperr.exact.own_constants import with_own_constants
from tests.conftest import Of, at_most, normal, seeded, tiny_mlp
from tests.makers.constants import NETWORKS, build


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_is_that_of_the_model_in_float64(name):
    model = build(name)
    x, v = normal(2, 4), normal(2, 3)
    found = exact.gradient(model, x, v, digits=20).to_torch()
    model = copy.deepcopy(model).double() if "old" not in name else build(name).double()
    leaf = x.double().requires_grad_()
    (theirs,) = torch.autograd.grad(model(leaf), leaf, v.double())
    # sums of at most 12 terms, a dozen of them one after another
    assert float((found - theirs).norm() / theirs.norm()) < 12 * 12 * 2.0**-53


@pytest.mark.parametrize("engine", exact.ENGINES)
def test_a_weight_norm_is_float64s(engine):
    """J^T v of a single layer is W^T v: its distance to the true W is float64's own error."""
    model = seeded(parametrizations.weight_norm(nn.Linear(4, 3)))
    size, direction = (p.detach() for p in (
        model.parametrizations.weight.original0, model.parametrizations.weight.original1
    ))  # fmt: skip
    with mpmath.workdps(60):
        weight = [
            [mpmath.mpf(float(g)) * mpmath.mpf(a) / mpmath.norm(row) for a in row]
            for g, row in zip(size, direction.double().tolist(), strict=True)
        ]
        found = exact.gradient(
            model, normal(1, 4), torch.eye(3)[:1], engine=engine, digits=at_most(engine, 20)
        )
        errors = [abs(a - b) / abs(b) for a, b in zip(found.midpoint[0], weight[0], strict=True)]
    # a sum of 4 squares, a root, a quotient and a product; not 0: float64 rounds
    assert 0 < max(errors) < 8 * 2.0**-53


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (torch.lgamma, ["aten.lgamma.default"]),
        (
            lambda x: torch.linalg.matrix_exp(x.reshape(1, 2, 2)).flatten(1),
            ["aten.linalg_matrix_exp"],
        ),
        (lambda x: x.cummax(1)[0], ["aten.cummax.default"]),
        (lambda x: x @ F.dropout(torch.ones(4, 3), training=True), ["random numbers"]),
    ],
)
def test_what_depends_on_x_or_on_chance_is_refused_by_name(function, operations):
    with pytest.raises(UnsupportedOperationError) as refusal:
        exact.capture(Of(function).eval(), normal(1, 4))
    assert all(name in str(refusal.value) for name in operations)


def test_an_operation_on_weights_is_not_named_beside_one_on_x():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 3)), Of(lambda x: x.logcumsumexp(1))
    )
    with pytest.raises(UnsupportedOperationError) as refusal:
        exact.capture(model.eval(), normal(1, 4))
    assert "logcumsumexp" in str(refusal.value)
    assert "weight_norm" not in str(refusal.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x if x.sum() > 0 else 2 * x,
        lambda x: x * x.max().item(),
        lambda x: x * float((x > 0).sum()),
        lambda x: x if torch.equal(x, x.abs()) else 2 * x,
    ],
)
def test_a_decision_that_depends_on_x_is_refused(function):
    where = r"takes a number out of a tensor that depends on x in Of, [a-z_]+\.py:\d+, as"
    with pytest.raises(ModelError, match=where):
        exact.capture(Of(function).eval(), 0.5 + torch.rand(1, 4))


def test_a_decision_on_constants_is_made_at_the_capture():
    model, x = build("condition on a buffer"), normal(1, 4)
    captured = exact.capture(model, x)
    assert "aten.where.self" not in {str(n.target) for n in captured.forward}
    model.threshold.fill_(0.5)
    v = torch.ones(1, 3)
    with pytest.raises(CaptureAuditError, match="differ from the eager run's at the same input"):
        captured.audit(model, x, v)
    captured = exact.capture(model, x)
    assert "aten.where.self" in {str(n.target) for n in captured.forward}
    captured.audit(model, x, v)


def test_a_mask_that_is_made_decides_at_the_capture():
    def masked(x):
        mask = torch.ones(4)
        return x if bool(mask.all()) else x * mask

    captured = exact.capture(Of(masked).eval(), normal(1, 4))
    assert not [n for n in captured.forward if "mul" in str(n.target)]


@pytest.mark.parametrize("engine", ["ball", "double_word"])
def test_a_wrong_constant_is_contradicted(monkeypatch, engine):
    def sabotaged(*arguments, **options):
        values = constant_values(*arguments, **options)
        return {name: (value[0] * (1 + 1e-9), *value[1:]) for name, value in values.items()}

    model, x, v = build("weight norm"), normal(2, 4), normal(2, 3)
    assert exact.gradient(model, x, v, engine=engine).audits[0].verdict == "confirmed"
    monkeypatch.setattr("fperr.exact.graph.constant_values", sabotaged)
    with pytest.raises(ContradictedError, match="_weight_norm_interface"):
        exact.gradient(model, x, v, engine=engine)


def test_what_a_hook_sets_is_put_back():
    model, x = build("old weight norm"), normal(1, 4)
    before = model[0].weight
    exact.capture(model, x)
    assert model[0].weight.tolist() == before.tolist()
    model(x).sum().backward()  # and it can still be trained
    assert all(p.grad is not None for p in model.parameters())


def test_a_network_without_such_operations_has_no_constants_of_its_own():
    captured = exact.capture(tiny_mlp(), normal(1, 6))
    assert not captured.float64_constants
    assert with_own_constants(captured) is captured


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("embedding of positions", set()),  # moves numbers
        ("sines of positions", set()),  # made from nothing
        ("causal mask", set()),
        ("weight norm", {"aten._weight_norm_interface.default"}),
        ("spectral norm", {"aten.mv.default", "aten.vdot.default", "aten.div.Tensor"}),
        ("StdConv", {"aten.native_batch_norm.default"}),
    ],
)
def test_the_constants_of_a_format_are_those_that_it_rounds(name, operations):
    captured = exact.capture(build(name), normal(1, 4))
    own = with_own_constants(captured)
    given = own.given_constants.keys() - captured.given_constants.keys()
    nodes = {n.name: str(n.target) for n in captured.forward + captured.backward}
    assert {nodes[name] for name in given} == operations
    assert (own is captured) == (not operations)


def test_constants_that_overflow_in_the_format_are_none():
    model = Of(lambda x: x * torch.exp(torch.tensor([12.0] * 4, dtype=x.dtype)))
    model.eval()
    assert with_own_constants(exact.capture(model, normal(1, 4))) is not None
    assert with_own_constants(exact.capture(model, normal(1, 4).half())) is None


def test_integers_alone_do_not_make_float32():
    """PyTorch's rule for sin of int64: float32, which the exact network does not have."""
    model = Of(lambda x: x * torch.tensor([1, 2, 3, 4]).sin().to(x.dtype)).eval()
    x, v = torch.ones(1, 4).double(), torch.ones(1, 4).double()
    found = exact.gradient(model, x, v, engine="ball").to_torch()
    assert torch.equal(found[0], torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).sin())


class WritesIntoParts(nn.Module):
    """Writes into slices and views of what it computes from parameters, as Swin V2's attention."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        bias = self.inner.bias.clone()
        bias[2:4].zero_()
        weight = self.inner.weight * 1.5
        weight.t()[0].add_(0.25)
        weight[1] *= 2
        return self.head(F.linear(x, weight, bias).tanh())


@pytest.mark.parametrize("engine", exact.ENGINES)
def test_what_is_written_into_parts_of_constants_is_seen(engine):
    model, x = WritesIntoParts().eval(), normal(2, 4)
    v = torch.eye(3, dtype=torch.float64)[:2]
    found = exact.gradient(model, x, v, engine=engine, digits=at_most(engine, 20)).to_torch()
    leaf = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(copy.deepcopy(model).double()(leaf), leaf, v)
    # products of 4 and 6 terms and a tanh in float64; without what is written, a third is wrong
    assert (found.double() - expected).norm() < 64 * 2.0**-53 * expected.norm()
    assert not captured_writes(exact.capture(model, x))


def captured_writes(captured):
    nodes = [*captured.forward, *captured.backward]
    return [n for n in nodes if n.target._schema.is_mutable]
