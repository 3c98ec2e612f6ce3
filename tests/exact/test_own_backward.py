"""Networks whose backward pass is code of their own: functions, checkpoints, hooks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fperr
from fperr import exact
from fperr.errors import CaptureAuditError, ModelError
from tests.conftest import normal, seeded


class Swish(torch.autograd.Function):
    """RobustBench's: its forward pass saves what its backward pass reads."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a * a.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        (a,) = ctx.saved_tensors
        s = a.sigmoid()
        return gradient * (s * (1 + a * (1 - s)))


class NewSwish(torch.autograd.Function):
    """The same with `setup_context`."""

    @staticmethod
    def forward(a):
        return a * a.sigmoid()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    backward = Swish.backward


class Steep(torch.autograd.Function):
    """A backward pass that is no derivative of the forward pass, as straight-through ones."""

    @staticmethod
    def forward(ctx, a):
        return a.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.mul_(3)  # in place, as people write it


class Clipped(Steep):
    """A backward pass that is not even linear."""

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(-1, 1)


class With(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, 4), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def hooked(hook):
    model = With(F.relu)
    model.first.register_full_backward_hook(hook)
    return model


MODELS = {
    "function": lambda: With(Swish.apply),
    "function with setup_context": lambda: With(NewSwish.apply),
    "straight through": lambda: With(Steep.apply),
    "checkpoint": lambda: With(lambda a: checkpoint(F.gelu, a, use_reentrant=False)),
    "hook that looks": lambda: hooked(lambda *_: None),
    "hook that changes": lambda: hooked(lambda module, given, out: (given[0] / 2,)),
}


@pytest.mark.parametrize("engine", ["float64", "double_word", "ball"])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_autograd(name, engine):
    model = seeded(MODELS[name]()).double().eval()
    x, v = normal(3, 6).double(), normal(3, 4, seed=1).double()
    leaf = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(model(leaf), leaf, v)
    found = exact.gradient(model, x, v, engine=engine).to_torch()
    # fewer than 20 operations, sums of at most 8 terms
    assert float((found - theirs).norm() / theirs.norm()) < 20 * 8 * 2.0**-53


def test_its_own_backward_pass_counts_and_not_the_derivative():
    """Negative control: the derivative of the sign is 0, its backward pass here is not."""
    model = seeded(With(Steep.apply)).double().eval()
    found = exact.gradient(model, normal(1, 6).double(), normal(1, 4, seed=1).double())
    assert bool((found.to_torch() != 0).any())


def test_measure_takes_such_a_network():
    model = seeded(With(Swish.apply)).eval()
    frame = fperr.measure(model, normal(2, 6), formats=["float16", "float32"], progress=False).frame
    assert frame["delta"].notna().all()
    assert frame["value_audit"].eq("confirmed").all()


def test_numbers_that_pass_through_numpy_are_noticed():
    model = seeded(With(lambda a: a + torch.from_numpy(2 * a.detach().numpy()))).eval()
    with pytest.raises(CaptureAuditError, match="numbers that leave PyTorch, as for NumPy"):
        exact.gradient(model, normal(2, 6), normal(2, 4))


def test_a_backward_pass_that_clips_is_refused():
    model = seeded(With(Clipped.apply)).eval()
    with pytest.raises(ModelError, match="not linear in the gradient that arrives"):
        exact.gradient(model, normal(2, 6), normal(2, 4))


def test_a_reentrant_checkpoint_is_refused_with_the_remedy():
    model = seeded(With(lambda a: checkpoint(F.gelu, a, use_reentrant=True))).eval()
    with (
        pytest.raises(ModelError, match="use_reentrant=False"),
        pytest.warns(UserWarning, match="None of the inputs have requires_grad"),
    ):
        exact.gradient(model, normal(2, 6), normal(2, 4))
