"""What an attack may say of a sample: robust, fooled, or that it cannot be judged."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fperr
from fperr import data, zoo
from fperr.attacks import NoGradientWarning, Outcome, UnjudgedWarning, attack_in_batches
from fperr.errors import ModelError

IMAGES = data.fashion_mnist_1000()
X, Y = IMAGES.x[:20], IMAGES.y[:20]
RADIUS, STEPS = 0.02, 4
START = torch.tensor([0, 1])  # no gradient has been taken before


class Around(nn.Module):
    """A packaged network with something done to its input and its output."""

    def __init__(self, before=lambda x: x, after=lambda z: z, name="fashion_standard"):
        super().__init__()
        self.network, self.before, self.after = zoo.load(name), before, after

    def forward(self, x):
        return self.after(self.network(self.before(x)))


class ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return torch.zeros_like(gradient)


def attacked(model, x=X, y=Y, **options):
    return fperr.attack(model.eval(), x, y, radius=RADIUS, **{"steps": STEPS, **options})


def some_nan(z):
    return torch.where((torch.arange(len(z)) % 4 == 0)[:, None], torch.nan, z)


def some_infinite(z):
    """One wrong class of every fourth sample is at +inf: it would be the prediction."""
    z = z.clone()
    z[::4, 9] = torch.inf
    return z


def by_brightness(value):
    """The logits of bright images are broken, whatever batch they are in."""

    def broken(network, x):
        z = network(x)
        is_bright = (x.flatten(1).mean(1) > 0.3)[:, None]
        return torch.where(is_bright, value * z.abs(), z)

    return broken


class OfInput(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.network, self.function = zoo.load("fashion_standard"), function

    def forward(self, x):
        return self.function(self.network, x)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", ["pgd", "apgd", "fgsm"])
def test_logits_that_are_no_numbers_are_neither_accurate_nor_robust(value, method):
    bright = X.flatten(1).mean(1) > 0.3
    assert 0 < bright.sum() < len(X)
    model = OfInput(by_brightness(value))
    with pytest.warns(UnjudgedWarning, match=r"could not be judged"):
        result = attacked(model, method=method)
    assert not result.is_clean_correct[bright].any()
    assert not (result.is_judged & ~result.success)[bright].any()
    with torch.no_grad():
        right = model.network(X).argmax(1) == Y
    assert torch.equal(result.is_clean_correct, right & ~bright)
    outcome = result.outcome
    assert outcome.robust + outcome.fooled + outcome.unjudged == outcome.samples == len(X)
    assert outcome.unjudged == int((~result.is_judged).sum()) > 0
    assert result.robust_accuracy == outcome.robust / len(X)


def test_a_network_without_any_number_has_no_accuracy_at_all():
    """Control: the same network without the damage has both."""
    with pytest.warns(UnjudgedWarning, match="20 of 20 could not be judged"):
        broken = attacked(Around(after=lambda z: z / (z * 0)))
    assert (broken.robust_accuracy, broken.clean_accuracy) == (0.0, 0.0)
    sound = attacked(Around())
    assert sound.is_judged.all()
    assert sound.clean_accuracy > 0.8
    assert sound.robust_accuracy > 0.1
    assert "judged" not in sound.sentence
    assert "gradient" not in sound.sentence


def test_what_overflows_in_the_format_of_the_attack_is_not_judged_there():
    model = Around(before=lambda x: x * 255, after=lambda z: z * 255)
    with pytest.warns(UnjudgedWarning, match="try a wider format"):
        half = attacked(model, format="float16")
    assert not half.is_judged.any()
    wider = attacked(model, format="float32")  # the remedy
    assert wider.is_judged.all()


def test_logits_that_break_along_the_way_leave_the_sample_unjudged():
    """Finite at x itself, none where the attack goes."""

    with torch.no_grad():
        right = zoo.load("fashion_standard")(X).argmax(1) == Y
    x, y = X[right][:1], Y[right][:1]

    def of_one(network, x_):
        moved = (x_ - x).flatten(1).abs().amax(1) > 1e-3
        return torch.where(moved[:, None], torch.nan, network(x_))

    with pytest.warns(UnjudgedWarning):
        result = attacked(OfInput(of_one), x, y)
    assert result.is_clean_correct.all()
    assert not result.success.any()
    assert result.robust_accuracy == 0.0


@pytest.mark.parametrize("method", ["pgd", "apgd", "fgsm"])
def test_gradients_that_are_exactly_zero_are_counted_and_said(method):
    result = attacked(Around(before=ZeroGradient.apply), method=method)
    never = (result.gradient_steps > 0) & (result.zero_gradient_steps == result.gradient_steps)
    attacked_at_all = result.first_success_step != 0
    if method != "fgsm":  # a random start may succeed by itself
        attacked_at_all &= result.first_success_step != 1
    assert torch.equal(never, attacked_at_all)
    assert f"{int(never.sum())} of {len(X)} never had a gradient" in result.sentence


def test_rounded_pixels_give_no_gradient_and_the_network_itself_does():
    rounded = attacked(Around(before=lambda x: (x * 255).round() / 255))
    assert rounded.outcome.without_gradient == rounded.outcome.attacked > 0
    plain = attacked(Around())
    assert plain.outcome.without_gradient == 0
    assert (plain.gradient_steps[~torch.isin(plain.first_success_step, START)] > 0).all()


def test_saturated_cross_entropy_says_how_many_never_had_a_gradient():
    model = zoo.load("fashion_saturated")
    ce, stable = attacked(model, loss="ce"), attacked(model, loss="stable_ce")
    assert ce.outcome.without_gradient > 10
    assert stable.outcome.without_gradient == 0
    assert ce.robust_accuracy > stable.robust_accuracy


def test_a_prediction_that_does_not_come_again_is_no_success():
    """The network forgets: its last prediction is another one than those before."""

    class Moody(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.network, self.calls, self.last = zoo.load("fashion_standard"), 0, last

        def forward(self, x):
            self.calls += 1
            return -self.network(x) if self.calls == self.last else self.network(x)

    steady = Moody(last=None)
    assert attacked(steady).is_judged.all()
    with pytest.warns(UnjudgedWarning, match="did not come again"):
        result = attacked(Moody(last=steady.calls))
    assert not (result.success & ~result.is_judged).any()
    assert result.outcome.unjudged > 0


def test_the_frame_of_batches_counts_as_the_result_does(tmp_path):
    model = OfInput(by_brightness(torch.nan)).eval()
    with pytest.warns(UnjudgedWarning):
        whole = attacked(model)
    with pytest.warns(UnjudgedWarning, match="of 20 could not be judged"):
        frame = attack_in_batches(model, X, Y, tmp_path, batch_size=7, radius=RADIUS, steps=STEPS)
    assert Outcome.from_frame(frame) == whole.outcome


@pytest.mark.parametrize(
    ("model", "fault", "text", "remedy"),
    [
        (
            Around(after=lambda z: z.softmax(1)),
            ValueError,
            "leave out its softmax, or take it as it is with accept_probabilities=True",
            {"accept_probabilities": True},
        ),
        (Around(after=lambda z: {"logits": z, "x": z}), ValueError, "logits='logits'", "logits"),
        (Around(after=lambda z: (z.sum(), z)), ValueError, "tuple of 2: say where", 1),
        (Around(after=lambda z: z[:, :, None]), ValueError, "logits=lambda z: z[:, 0]", None),
    ],
)
def test_attack_refuses_what_measure_refuses_and_its_remedy_helps(model, fault, text, remedy):
    for door in (attacked, lambda m: fperr.measure(m.eval(), X, Y)):
        with pytest.raises(fault) as raised:
            door(model)
        assert text in str(raised.value)
    if remedy is None:
        options = {"logits": lambda z: z[:, :, 0]}
    else:
        options = remedy if isinstance(remedy, dict) else {"logits": remedy}
    result = attacked(model, **options)
    assert result.is_judged.all()


@dataclass
class Scores:
    scores: torch.Tensor


@pytest.mark.parametrize("where", ["scores", lambda output: output.scores])
def test_logits_of_a_dataclass_are_those_of_the_network(where):
    result = attacked(Around(after=Scores), logits=where)
    assert torch.equal(result.adversarial, attacked(Around()).adversarial)
    with pytest.raises(ValueError, match=r"has no tensor at logits='score': say where.*'scores'"):
        attacked(Around(after=Scores), logits="score")
    with pytest.raises(TypeError, match="a name, an index or a function"):
        attacked(Around(after=Scores), logits=True)


def noisy(x):
    return x + 0.1 * torch.randn_like(x)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Around(before=noisy), "depends on randomness"),
        (Around(before=lambda x: x - x.mean(0)), "depends on the batch"),
        (Around(before=lambda x: x / x.amax()), "depends on the batch"),
        (Around(before=lambda x: x.mul_(0.5)), "changes its input in place"),
    ],
)
def test_models_that_are_no_function_of_one_sample_are_refused(model, text):
    before = X.clone()
    with pytest.raises(ModelError, match=text):
        attacked(model)
    assert torch.equal(X, before)


def test_training_mode_is_refused_also_when_it_is_switched_on_along_the_way():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(0.5)).eval()
    with pytest.raises(ValueError, match=r"call model\.eval"):
        fperr.attack(model.train(), X, Y, radius=RADIUS)
    model.eval()
    with pytest.raises(ModelError, match="switched to training mode along the way"):
        attacked(model, on_step=lambda *_: model.train())
    attacked(model.eval(), on_step=lambda *_: model.train().eval())  # the remedy


def test_a_radius_that_reaches_everything_is_questioned():
    with pytest.raises(ValueError, match=r"in linf, got 8\. Did you mean radius=8/255\?"):
        fperr.attack(zoo.load("fashion_standard"), X, Y, radius=8)
    fperr.attack(zoo.load("fashion_standard"), X, Y, radius=8 / 255, steps=1)
    fperr.attack(zoo.load("fashion_standard"), X, Y, radius=8, steps=1, norm="l2")
    fperr.attack(zoo.load("fashion_standard"), X, Y, radius=8, steps=1, box=(0, 255))


def test_tf32_exists_on_cuda_alone():
    with pytest.raises(ValueError, match="format 'tf32' exists on CUDA devices only"):
        attacked(zoo.load("fashion_standard"), format="tf32")


def test_an_attack_without_any_gradient_warns():
    with pytest.warns(
        NoGradientWarning, match="of 20 never had a gradient: each was exactly zero,"
    ):
        attacked(Around(before=ZeroGradient.apply))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacked(Around())


class Infinite(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * torch.inf


@pytest.mark.parametrize("method", ["pgd", "apgd", "fgsm"])
def test_gradients_that_are_never_finite_are_no_gradients(method):
    with pytest.warns(NoGradientWarning, match="each was exactly zero or not finite"):
        result = attacked(Around(before=Infinite.apply), method=method)
    assert torch.equal(result.broken_gradient_steps, result.gradient_steps)
    assert not result.zero_gradient_steps.any()


def test_what_on_step_does_to_its_tensors_is_nothing_to_the_attack():
    x, before = X.clone(), X.clone()

    def meddle(_, *tensors):
        for tensor in tensors:
            tensor.zero_()

    options = {"random_start": False, "freeze": False}
    for method in ("pgd", "apgd", "fgsm"):
        quiet = attacked(Around(), x, method=method, **options)
        meddled = attacked(Around(), x, method=method, on_step=meddle, **options)
        assert torch.equal(quiet.adversarial, meddled.adversarial)
        assert torch.equal(x, before)
        assert (meddled.excess_ulps <= 0).all()


def test_one_sample_without_logits_does_not_stop_an_exact_attack():
    few, labels = X[:3], Y[:3]

    def broken(network, x):
        is_second = (x - few[1]).flatten(1).abs().amax(1) <= 0.021
        return torch.where(is_second[:, None], torch.nan, network(x))

    with pytest.warns(UnjudgedWarning, match="1 of 3 could not be judged"):
        result = attacked(OfInput(broken), few, labels, format="exact", steps=2)
    assert result.is_judged.tolist() == [True, False, True]


def test_a_network_that_is_random_under_a_gradient_alone_is_refused():
    class Moody(Around):
        def forward(self, x):
            return super().forward(noisy(x) if torch.is_grad_enabled() else x)

    with pytest.raises(ModelError, match="depends on randomness"):
        attacked(Moody())


class Scaled(nn.Module):
    """A number that is no weight, and shows in no list of them."""

    def __init__(self, factor):
        super().__init__()
        self.network, self.factor = zoo.load("fashion_standard"), factor

    def forward(self, x):
        return self.network(x) * self.factor


def test_an_attack_goes_on_only_with_the_same_network_and_options(tmp_path):
    options = {"radius": RADIUS, "steps": 1}
    attack_in_batches(Scaled(1.0).eval(), X, Y, tmp_path, **options)
    with pytest.raises(ValueError, match="holds another attack \\(network"):
        attack_in_batches(Scaled(1.0005).eval(), X, Y, tmp_path, **options)
    same = {**options, "box": [0, 1], "restarts": 1}
    attack_in_batches(Scaled(1.0).eval(), X, Y, tmp_path, **same)
