"""`fperr.repaired`: other people's attacks find what they missed, and nobody trains by accident."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import optimizer

import fperr
from fperr import data, zoo
from fperr.errors import RepairWarning
from fperr.losses import Context, loss_named
from fperr.repair.leaves import leaves
from fperr.shares import wilson_interval
from tests.conftest import normal, tiny_mlp
from tests.makers.libraries import attacks

IMAGES = data.fashion_mnist_1000().first(100)
STEPS = 20


def robust(network, attack, radius, repair=None, value="cross_entropy"):
    """How many images are right after an attack, repaired or not."""
    model, run = zoo.load(network), attacks(radius, STEPS, radius / 5)[attack]
    torch.manual_seed(0)
    if repair is None:
        adversarial = run(model, IMAGES.x.clone(), IMAGES.y.clone())
    else:
        with fperr.repaired(repair, value=value) as mode:
            adversarial = run(model, IMAGES.x.clone(), IMAGES.y.clone())
        assert mode.repaired_calls >= STEPS
        assert not mode.other_calls
    with torch.no_grad():
        return int((model(adversarial).argmax(1) == IMAGES.y).sum())


@pytest.mark.parametrize("attack", ["torchattacks PGD", "foolbox LinfPGD", "ART PGD"])
def test_pgd_of_other_libraries_finds_what_it_missed(attack):
    assert robust("fashion_saturated", attack, 0.05) >= 75
    assert robust("fashion_saturated", attack, 0.05, "stable_ce") <= 20
    assert robust("fashion_saturated", attack, 0.05, "mifpe") <= 15
    # the true gradient is e^-1000 there: no accuracy helps
    assert robust("fashion_saturated", attack, 0.05, "cross_entropy") >= 75


@pytest.mark.parametrize("attack", ["pyautoattack APGD-CE", "adv_lib PGD"])
def test_attacks_that_read_values_take_those_of_stable_ce(attack):
    before = robust("fashion_saturated", attack, 0.05)
    by_gradient = robust("fashion_saturated", attack, 0.05, "mifpe")
    by_both = robust("fashion_saturated", attack, 0.05, "mifpe", "stable_ce")
    assert before >= 75
    assert by_both <= by_gradient <= 45


@pytest.mark.parametrize("repair", ["stable_ce", "mifpe", "tmifpe", "cross_entropy"])
def test_a_network_whose_gradients_are_there_does_not_move(repair):
    """Negative control: within the interval of a share of 100 images."""
    before = robust("fashion_standard", "torchattacks PGD", 0.01)
    assert 10 < before < 90
    low, high = wilson_interval(before, len(IMAGES.x))
    after = robust("fashion_standard", "torchattacks PGD", 0.01, repair) / len(IMAGES.x)
    assert low <= after <= high


@pytest.mark.slow
def test_torchattacks_on_a_thousand_images():
    images, model = data.fashion_mnist_1000(), zoo.load("fashion_saturated")
    run = attacks(0.05, STEPS, 0.01)["torchattacks PGD"]

    def share(repair):
        torch.manual_seed(0)
        with fperr.repaired(repair):
            adversarial = run(model, images.x.clone(), images.y.clone())
        return 100 * float((model(adversarial).argmax(1) == images.y).float().mean())

    torch.manual_seed(0)
    plain = run(model, images.x.clone(), images.y.clone())
    assert 86 <= 100 * float((model(plain).argmax(1) == images.y).float().mean()) <= 90
    assert share("stable_ce") <= 13
    assert share("mifpe") <= 10


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("repair", ["stable_ce", "mifpe", "tmifpe"])
def test_the_value_is_cross_entropys_and_the_gradient_another_losss(repair, reduction):
    z, y = (3 * normal(6, 5)).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0])
    with fperr.repaired(repair):
        loss = functional.cross_entropy(z, y, reduction=reduction)
    assert torch.equal(loss, functional.cross_entropy(z, y, reduction=reduction))
    upstream = torch.ones_like(loss)
    other = loss_named(repair)(z, y, Context())
    other = other if reduction == "none" else getattr(other, reduction)()
    (found,), (expected,) = (
        torch.autograd.grad(objective, z, upstream) for objective in (loss, other)
    )
    assert torch.equal(found, expected)
    with fperr.repaired(repair, value="stable_ce"):
        value = functional.cross_entropy(z, y, reduction="none")
    assert torch.equal(value, loss_named("stable_ce")(z, y, Context()))


def test_positions_of_more_dimensions_and_modules_are_repaired():
    z, y = normal(2, 5, 3, 4).requires_grad_(), torch.randint(5, (2, 3, 4))
    with fperr.repaired("stable_ce") as mode:
        loss = nn.CrossEntropyLoss(reduction="none")(z, y)
    assert mode.repaired_calls == 1
    assert loss.shape == y.shape
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    rows = gradient.movedim(1, -1).reshape(-1, 5)
    assert torch.allclose(rows[torch.arange(24), y.flatten()], -torch.ones(24))


def test_plain_cross_entropy_keeps_all_of_its_arguments():
    z, y = normal(6, 5).requires_grad_(), torch.tensor([0, 1, -100, 3, 4, 0])
    options = {"weight": torch.rand(5) + 0.1, "label_smoothing": 0.1, "reduction": "sum"}
    with fperr.repaired("cross_entropy") as mode:
        loss = functional.cross_entropy(z, y, **options)
    assert mode.repaired_calls == 1
    plain = functional.cross_entropy(z, y, **options)
    assert torch.equal(loss, plain)
    (found,), (expected,) = (torch.autograd.grad(objective, z) for objective in (loss, plain))
    assert torch.allclose(found, expected, atol=1e-6)


def not_repaired(call):
    """The warning of calls that are left as they are."""
    z, y = normal(4, 5).requires_grad_(), torch.tensor([0, 1, 2, 3])
    with pytest.warns(RepairWarning) as caught, fperr.repaired("mifpe"):
        loss = call(z, y)
    loss.sum().backward()
    return str(caught[0].message)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda z, y: functional.nll_loss(z.log_softmax(1), y), "1 of nll_loss (of a log_softmax"),
        (lambda z, _: functional.cross_entropy(z, z.softmax(1).detach()), "probabilities"),
        (lambda z, y: functional.cross_entropy(z, y, weight=torch.ones(5)), "weights"),
        (lambda z, y: functional.cross_entropy(z, y, label_smoothing=0.1), "label smoothing"),
        (lambda z, y: functional.cross_entropy(z, y.clamp_max(2), ignore_index=2), "ignored"),
        (lambda z, y: functional.multi_margin_loss(z, y), "no cross-entropy"),
        (lambda z, _: z.square().sum(), "saw no call"),
    ],
)
def test_what_is_not_repaired_is_named_with_a_remedy(call, text):
    message = not_repaired(call)
    assert text in message
    assert "fperr.Rescaled(model)" in message


def test_other_threads_are_not_seen():
    z, y = normal(4, 5).requires_grad_(), torch.tensor([0, 1, 2, 3])

    def in_a_thread():
        with fperr.repaired():
            thread = threading.Thread(target=functional.cross_entropy, args=(z, y))
            thread.start()
            thread.join()

    with pytest.warns(RepairWarning, match=r"saw no call.*another thread"):
        in_a_thread()


def training_step(model, optimiser, *, own_input=False):
    x = normal(4, 6).requires_grad_(own_input)
    functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 3])).backward()
    optimiser.step()


@pytest.mark.parametrize("repair", ["stable_ce", "mifpe", "tmifpe"])
def test_a_training_step_raises(repair):
    model = tiny_mlp()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in model.parameters()]
    with fperr.repaired(repair), pytest.raises(RuntimeError, match="is for attacks, got"):
        training_step(model, optimiser)
    # the input is a leaf, too: an attack fills the gradients of parameters, and nobody steps
    with fperr.repaired(repair), pytest.raises(RuntimeError, match="got an optimiser's step"):
        training_step(model, optimiser, own_input=True)
    with pytest.raises(RuntimeError, match="got an optimiser's step"):
        optimiser.step()  # after the block, with the same gradients
    assert all(map(torch.equal, model.parameters(), before))
    # the remedy
    optimiser.zero_grad()
    training_step(model, optimiser)
    assert not all(map(torch.equal, model.parameters(), before))


def noted_model():
    """A model, its optimiser, and a loss of `repaired` that also fills the gradients."""
    model = tiny_mlp()
    x = normal(4, 6).requires_grad_()
    with fperr.repaired("mifpe"):
        loss = functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 3]))
    return model, torch.optim.SGD(model.parameters(), lr=0.1), loss


def test_a_backward_pass_after_the_block_is_noticed():
    _, optimiser, loss = noted_model()
    loss.backward()
    with pytest.raises(RuntimeError, match="got an optimiser's step"):
        optimiser.step()


def test_another_tensor_with_the_same_gradient_is_noticed():
    model, optimiser, loss = noted_model()
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = parameter.grad.clone()
    with pytest.raises(RuntimeError, match=r"call optimizer.zero_grad\(\) before"):
        optimiser.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_remedy_of_a_refused_step(set_to_none):
    model, optimiser, loss = noted_model()
    loss.backward()
    optimiser.zero_grad(set_to_none=set_to_none)
    training_step(model, optimiser)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_an_optimisers_closure_is_noticed_before_its_step(kind):
    model = tiny_mlp()
    optimiser = kind(model.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in model.parameters()]

    def closure():
        optimiser.zero_grad()
        x = normal(4, 6).requires_grad_()
        loss = functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 3]))
        loss.backward()
        return loss

    with fperr.repaired("mifpe"), pytest.raises(RuntimeError, match="got an optimiser's step"):
        optimiser.step(closure)
    assert all(map(torch.equal, model.parameters(), before))
    optimiser.step(closure)


def test_an_optimiser_in_the_backward_pass_is_noticed():
    """The recipe of PyTorch's tutorial: each parameter steps as soon as it has its gradient."""
    model, _, loss = noted_model()
    before = [parameter.clone() for parameter in model.parameters()]
    optimisers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter):
        optimisers[parameter].step()
        optimisers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with pytest.raises(RuntimeError, match="got an optimiser's step"):
        loss.backward()
    assert all(map(torch.equal, model.parameters(), before))


def test_a_closure_after_the_block_or_around_another_step_is_noticed():
    model, optimiser, loss = noted_model()

    def later():
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="got an optimiser's step"):
        optimiser.step(later)
    model.zero_grad()
    shift = torch.zeros(4, 6).requires_grad_()
    inner = torch.optim.Adam([shift])

    def nested():
        inner.step()
        loss = functional.cross_entropy(model(shift), torch.tensor([0, 1, 2, 3]))
        loss.backward()
        return loss

    with fperr.repaired("mifpe"), pytest.raises(RuntimeError, match="got an optimiser's step"):
        optimiser.step(nested)


def test_a_backward_pass_that_fails_leaves_training_alone():
    model, y = tiny_mlp(), torch.tensor([0, 1, 2, 3])
    x = normal(4, 6).requires_grad_()

    def failing(_):
        raise KeyError("from a hook")

    with fperr.repaired("mifpe"):
        z = model(x)
        loss = functional.cross_entropy(z, y)
        handle = z.register_hook(failing)
        with pytest.raises(KeyError):
            loss.backward()
        handle.remove()
    for _ in range(2):
        training_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        model.zero_grad()
    assert not any(p._backward_hooks for p in model.parameters())


def test_a_step_that_fails_leaves_the_next_attack_alone():
    model, x = tiny_mlp(), normal(4, 6).requires_grad_()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

    def failing():
        raise KeyError("from a closure")

    with fperr.repaired("mifpe"):
        with pytest.raises(KeyError):
            optimiser.step(failing)
        functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 3])).backward()


def test_gradients_put_in_by_hand_are_their_own():
    model, optimiser, loss = noted_model()
    loss.backward()
    optimiser.zero_grad()
    plain = functional.cross_entropy(model(normal(4, 6, seed=5)), torch.tensor([3, 2, 1, 0]))
    for parameter, g in zip(
        model.parameters(), torch.autograd.grad(plain, list(model.parameters())), strict=True
    ):
        parameter.grad = g
    optimiser.step()


def test_gradients_added_to_marked_ones_are_marked():
    model, optimiser, loss = noted_model()
    loss.backward()
    functional.cross_entropy(model(normal(4, 6)), torch.tensor([0, 1, 2, 3])).backward()
    with pytest.raises(RuntimeError, match="got an optimiser's step"):
        optimiser.step()


def test_the_gradient_of_a_hidden_layer_is_no_training_step():
    model = tiny_mlp()
    hidden = model[0](normal(4, 6))
    with fperr.repaired("mifpe"):
        loss = functional.cross_entropy(model[2](model[1](hidden)), torch.tensor([0, 1, 2, 3]))
        (gradient,) = torch.autograd.grad(loss, hidden)
    assert bool(gradient.any())


def test_an_optimiser_of_the_perturbation_may_step():
    model, x = tiny_mlp(), normal(4, 6)
    shift = torch.zeros_like(x).requires_grad_()  # what the error for a parameter names
    optimiser = torch.optim.Adam([shift])
    with fperr.repaired("mifpe"):
        for _ in range(2):
            optimiser.zero_grad()
            functional.cross_entropy(model(x + shift), torch.tensor([0, 1, 2, 3])).backward()
            optimiser.step()
    assert bool(shift.any())


def test_a_perturbation_that_is_a_parameter_is_told_the_remedy():
    model, shift = tiny_mlp().requires_grad_(False), nn.Parameter(torch.zeros(4, 6))
    with fperr.repaired("mifpe"):
        loss = functional.cross_entropy(model(shift), torch.tensor([0, 1, 2, 3]))
        with pytest.raises(RuntimeError, match=r"torch\.zeros_like\(x\)\.requires_grad_\(\)"):
            loss.backward()


def test_logits_that_are_parameters_are_trained():
    z = nn.Parameter(normal(4, 5))
    with fperr.repaired("mifpe"):
        loss = functional.cross_entropy(z, torch.tensor([0, 1, 2, 3]))
        with pytest.raises(RuntimeError, match="depends on parameters alone"):
            loss.backward()


def test_gradients_that_another_hook_takes_away_are_not_marked():
    model, optimiser, loss = noted_model()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    loss.backward()
    optimiser.step()


@pytest.mark.filterwarnings("ignore:.torch.jit")  # PyTorch's own, of forward mode
def test_transforms_take_the_repaired_gradient():
    z, y = 40 * normal(4, 5), torch.tensor([0, 1, 2, 3])

    def of_repaired(z):
        return functional.cross_entropy(z, y, reduction="sum")

    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss_named("mifpe")(leaf, y, Context()).sum(), leaf)
    with fperr.repaired("mifpe") as mode:
        assert torch.allclose(torch.func.grad(of_repaired)(z), expected)
        assert torch.allclose(torch.func.jacfwd(of_repaired)(z), expected, atol=1e-6)
        one = lambda z, y: functional.cross_entropy(z[None], y[None])  # noqa: E731
        alone = torch.func.vmap(torch.func.grad(one))(z, y)
    assert mode.repaired_calls == 3
    assert torch.allclose(alone, expected)


def test_calls_for_values_alone_are_named_as_such():
    z, y = normal(4, 5), torch.tensor([0, 1, 2, 3])
    says = pytest.warns(RepairWarning, match="saw all calls of .* without a gradient")
    with says, fperr.repaired():
        functional.cross_entropy(z, y)
    with fperr.repaired(value="stable_ce") as mode:
        functional.cross_entropy(z, y)
    assert mode.calls_for_values == 1


@pytest.mark.parametrize("repair", ["stable_ce", "mifpe", "tmifpe", "cross_entropy"])
@pytest.mark.parametrize(
    "z",
    [
        torch.tensor([[1.0, float("nan"), 0.0]]),
        torch.tensor([[1.0, float("inf"), 0.0]]),
        torch.empty(0, 3),
        torch.tensor([[0.5, 0.25, 0.25]]),
    ],
    ids=["nan", "inf", "empty", "probabilities"],
)
def test_what_pytorch_answers_is_answered(repair, z):
    z, y = z.clone().requires_grad_(), torch.zeros(len(z), dtype=torch.long)
    plain = functional.cross_entropy(z, y)
    with fperr.repaired(repair):
        loss = functional.cross_entropy(z, y)
    assert torch.equal(loss.nan_to_num(7), plain.nan_to_num(7))
    loss.backward()
    assert z.grad.shape == z.shape


def test_an_ignored_class_is_left_out():
    z, y = normal(4, 5).requires_grad_(), torch.tensor([0, 1, 2, 1])
    with fperr.repaired("cross_entropy"):
        loss = functional.cross_entropy(z, y, ignore_index=1)
    (found,) = torch.autograd.grad(loss, z)
    (expected,) = torch.autograd.grad(functional.cross_entropy(z, y, ignore_index=1), z)
    assert torch.allclose(found, expected, atol=1e-7)
    assert not found[[1, 3]].any()


def test_a_scaled_loss_of_half_logits_does_not_overflow():
    """GradScaler multiplies the loss by 2^16, the largest power beyond float16."""
    layer, x = nn.Linear(6, 5), normal(8, 6).requires_grad_()
    with torch.autocast("cpu", torch.float16), fperr.repaired("stable_ce"):
        loss = functional.cross_entropy(layer(x), torch.arange(8) % 5)
    (gradient,) = torch.autograd.grad(2.0**16 * loss, x)
    assert bool(gradient.isfinite().all())


def test_training_in_repaired_cross_entropy_is_training():
    models = [tiny_mlp(), tiny_mlp()]
    for model, context in zip(models, [fperr.repaired("cross_entropy"), None], strict=True):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            if context is None:
                training_step(model, optimiser)
            else:
                with fperr.repaired("cross_entropy"):
                    training_step(model, optimiser)
            optimiser.zero_grad()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_hooks_are_gone_once_nobody_needs_them():
    before = len(optimizer._global_optimizer_pre_hooks)
    model = tiny_mlp()
    x, y = normal(4, 6).requires_grad_(), torch.tensor([0, 1, 2, 3])
    with fperr.repaired():
        functional.cross_entropy(model(x), y).backward()
    assert len(optimizer._global_optimizer_pre_hooks) == before + 1  # its gradients are there
    model.zero_grad()
    torch.optim.SGD([x], lr=0.1).step()  # of another tensor
    training_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert len(optimizer._global_optimizer_pre_hooks) == before
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
    with fperr.repaired():
        torch.autograd.grad(functional.cross_entropy(model(x), y), x)
    assert len(optimizer._global_optimizer_pre_hooks) == before


def test_a_second_derivative_raises():
    z, y = normal(4, 5).requires_grad_(), torch.tensor([0, 1, 2, 3])
    with fperr.repaired("tmifpe"):
        loss = functional.cross_entropy(z, y)
        (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative of repaired"):
            gradient.square().sum().backward()
    with fperr.repaired("cross_entropy"):
        loss = functional.cross_entropy(z, y)
        (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
        gradient.square().sum().backward()


def nested():
    with fperr.repaired("mifpe"), fperr.repaired():
        pass


def of_class_9():
    with fperr.repaired():
        functional.cross_entropy(normal(2, 5).requires_grad_(), torch.tensor([0, 9]))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: fperr.repaired("ce"), ValueError,
            r"repair must be one of 'cross_entropy', 'stable_ce', 'mifpe', 'tmifpe', got 'ce': use",
        ),
        (lambda: fperr.repaired(value="mifpe"), ValueError, r"value must be one of .* got 'mifpe'"),
        (nested, RuntimeError, r"inside repaired, got a second one: leave the first block"),
        (of_class_9, IndexError, r"Target 9 is out of bounds"),  # as PyTorch answers it
        (lambda: fperr.Rescaled(abs), TypeError, r"torch\.nn\.Module, got builtin_function"),
        (lambda: fperr.Rescaled(tiny_mlp(), T=0), ValueError, r"T must be finite and above 0, got"),
    ],
)  # fmt: skip
def test_bad_arguments_are_answered_with_a_sentence(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_leaves_of_a_graph():
    model, x = tiny_mlp(), normal(2, 6)
    parameters, has_other = leaves(model(x))
    assert len(parameters) == len(list(model.parameters()))
    assert not has_other
    assert leaves(model(x.requires_grad_()))[1]
    assert leaves(x) == ([], True)


def test_nan_logits_stay_the_attacks_business():
    z = normal(3, 5)
    z[1, 2] = float("nan")
    z.requires_grad_()
    with fperr.repaired():
        loss = functional.cross_entropy(z, torch.tensor([0, 1, 2]), reduction="none")
    assert loss.isnan().tolist() == [False, True, False]


def test_a_rescaled_model_leaves_the_model_as_it_is():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).train()
    model[1].eval()  # frozen
    rescaled = fperr.Rescaled(model)
    assert [m.training for m in (rescaled, model, model[0], model[1])] == [True, True, True, False]
    assert rescaled(torch.empty(0, 6)).shape == (0, 3)
    x = normal(2, 6).requires_grad_()
    loss = functional.cross_entropy(rescaled(x), torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative of fperr\.Rescaled\(model\)"):
        gradient.sum().backward()


def test_a_rescaled_model_has_a_margin_of_1_and_the_same_predictions():
    model = zoo.load("fashion_saturated")
    rescaled = fperr.Rescaled(model)
    z, scaled = model(IMAGES.x), rescaled(IMAGES.x)
    assert torch.equal(z.argmax(1), scaled.argmax(1))
    top = scaled.topk(2).values
    assert torch.allclose(top[:, 0] - top[:, 1], torch.ones(len(z)), atol=1e-3)
    run = attacks(0.05, STEPS, 0.01)["torchattacks PGD"]
    torch.manual_seed(0)
    adversarial = run(rescaled, IMAGES.x.clone(), IMAGES.y.clone())
    assert int((model(adversarial).argmax(1) == IMAGES.y).sum()) <= 15
