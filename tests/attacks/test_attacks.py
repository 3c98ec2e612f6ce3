"""Our attacks: what they reach, in which arithmetic."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fperr
from fperr import attacks, zoo
from fperr.attacks import UnjudgedWarning
from fperr.attacks.goal import Goal
from fperr.attacks.progress import gradient_size
from fperr.errors import ModelError
from fperr.losses import loss_named
from tests.conftest import seeded, tiny_mlp

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def uniform(*shape, dtype=torch.float32, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_that_are_not_finite_are_found(dtype):
    gradient = torch.full((5, 3, 100, 100), torch.finfo(dtype).max, dtype=dtype)
    gradient[1] *= -1
    for i, value in ((2, math.inf), (3, -math.inf), (4, math.nan)):
        gradient[i, 2, 99, 7] = value
    assert (gradient_size(gradient) < math.inf).tolist() == [True, True, False, False, False]
    gradient[2:, 0, 0, 0] = -math.inf  # of both signs: their sum is no number
    assert (gradient_size(gradient) < math.inf).tolist() == [True, True, False, False, False]


def test_points_lie_in_memory_as_the_inputs_do():
    """A network in channels_last has gradients that lie otherwise; points may be viewed flat."""
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4)))
    model, x = model.to(memory_format=torch.channels_last), uniform(4, 3, 8, 8)
    seen = []

    def note(step, point, logits, gradient):
        seen.append((point.view(4, -1).shape, gradient.stride()))

    fperr.attack(model, x, model(x).argmax(1), radius=0.1, loss="ce", steps=4, on_step=note)
    assert len(seen) == 4
    assert any(stride != x.stride() for _, stride in seen)  # the gradients do lie otherwise


class Masked(nn.Module):
    """A linear network whose last class is masked."""

    def __init__(self):
        super().__init__()
        self.linear = seeded(nn.Linear(20, 5))

    def forward(self, x):
        return self.linear(x).index_fill(1, torch.tensor([4]), -math.inf)


@pytest.mark.parametrize("loss", ["mifpe", "mifpe_shifted"])
def test_a_masked_class_does_not_stop_mifpe(loss):
    model, x = Masked().eval(), uniform(4, 20)
    found = fperr.attack(model, x, model(x).argmax(1), radius=0.5, loss=loss, steps=20)
    assert found.is_finite.all()
    assert found.success.all()


def test_large_gradients_are_finite_under_autocast():
    gradient = torch.full((2, 300), 1e38)
    with torch.autocast("cpu", torch.float16):
        assert (gradient_size(gradient) < math.inf).all()
        assert (gradient @ gradient.new_full((300,), 1e-3)).isinf().all()  # a product is not


def by_hand(model, x, y, radius, size, steps):
    """Madry's PGD from x, as every library writes it: mean reduction, no momentum."""
    adversarial = x.clone()
    for _ in range(steps):
        adversarial.requires_grad_()
        loss = nn.functional.cross_entropy(model(adversarial), y)
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = adversarial.detach() + size * gradient.sign()
        delta = torch.clamp(adversarial - x, min=-radius, max=radius)
        adversarial = torch.clamp(x + delta, min=0, max=1).detach()
    return adversarial


def test_the_iterates_of_libraries_bit_by_bit(fashion):
    model, images = zoo.load("fashion_adversarial"), fashion.first(16)
    x = images.x
    points = {}
    attacks.attack(
        model, x, images.y, loss="ce", radius=0.02, steps=5, step_size=0.005, momentum=0.0,
        schedule="constant", random_start=False, reduction="mean", projection="library",
        on_step=lambda step, point, *_: points.__setitem__(step, point),
    )  # fmt: skip
    with torch.no_grad():
        still = model(points[5]).argmax(1) == images.y
    expected = by_hand(model, x, images.y, 0.02, 0.005, 4)
    moving = torch.stack([model(points[k]).argmax(1) == images.y for k in points]).all(0)
    assert moving.sum() >= 8  # others have succeeded, and stay put
    assert still[moving].all()
    assert torch.equal(points[5][moving], expected[moving])


def test_results_say_what_they_are(fashion):
    model, images = zoo.load("fashion_standard"), fashion.first(40)
    found = fperr.attack(model, images.x, images.y, radius=0.02, steps=10)
    with torch.no_grad():
        logits = model(found.adversarial).double()
        clean = model(images.x).argmax(1) != images.y
    wrong = logits.argmax(1) != images.y
    assert torch.equal(found.success, wrong)
    assert (found.first_success_step[clean] == 0).all()
    assert torch.equal(found.adversarial[clean], images.x[clean])
    assert ((found.first_success_step >= 0) == found.success).all()
    assert found.first_success_step.max() <= 11
    assert (found.excess_ulps <= 0).all()
    margin = logits.gather(1, images.y[:, None])[:, 0] - logits.scatter(
        1, images.y[:, None], -torch.inf
    ).amax(1)
    assert torch.equal(found.best_margin[~found.success], margin[~found.success])
    assert found.robust_accuracy == 1 - wrong.double().mean()
    assert 0 < found.robust_accuracy < 0.6
    seen = {}
    more = fperr.attack(
        model, images.x, images.y, radius=0.02, steps=10, restarts=2,
        on_step=lambda *step: seen.__setitem__(step[0], step[1]),
    )  # fmt: skip
    # in the second run, samples that fell in the first are where they fell
    assert torch.equal(seen[15][found.success], found.adversarial[found.success])
    assert (more.success | ~found.success).all()


def test_cross_entropy_is_blind_where_stable_cross_entropy_is_not(fashion):
    model, images = zoo.load("fashion_saturated"), fashion.first(100)
    robust = {
        loss: fperr.attack(
            model, images.x, images.y, radius=0.05, steps=10, loss=loss
        ).robust_accuracy
        for loss in ("ce", "stable_ce", "tmifpe")
    }
    assert robust["ce"] > robust["stable_ce"] + 0.3
    assert robust["ce"] > robust["tmifpe"] + 0.3


def test_exact_gradients_tell_floating_point_from_geometry(fashion):
    """Cross-entropy's gradient, exact, does what stable cross-entropy does: the loss was right."""
    model, images = zoo.load("fashion_saturated"), fashion.first(12)
    options = {"radius": 0.05, "steps": 6}
    exact = fperr.attack(model, images.x, images.y, loss="ce", format="exact", **options)
    stable = fperr.attack(model, images.x, images.y, loss="stable_ce", **options)
    blind = fperr.attack(model, images.x, images.y, loss="ce", **options)
    assert torch.equal(exact.success, stable.success)
    assert exact.success.sum() > blind.success.sum() + 3


@pytest.mark.parametrize("arithmetic", ["float16", "bfloat16", "float64"])
def test_every_arithmetic_attacks(arithmetic, fashion):
    model, images = zoo.load("fashion_adversarial"), fashion.first(8)
    found = fperr.attack(
        model, images.x, images.y, radius=0.1, steps=5, loss="mifpe", format=arithmetic
    )
    assert found.adversarial.dtype == torch.float32
    assert found.success.any()
    assert found.is_finite.all()


def test_targets_are_reached_or_not(fashion):
    model, images = zoo.load("fashion_standard"), fashion.first(20)
    with torch.no_grad():
        second = model(images.x).topk(2).indices
    targets = torch.where(second[:, 0] == images.y, second[:, 1], second[:, 0])
    found = fperr.attack(model, images.x, images.y, radius=0.05, steps=10, targets=targets)
    with torch.no_grad():
        reached = model(found.adversarial).argmax(1) == targets
    assert torch.equal(found.success, reached)
    assert found.success.sum() > 10


@pytest.mark.parametrize("loss", ["ce", "tmifpe", "dlr"])
def test_apgd_beats_fgsm(loss, fashion):
    model, images = zoo.load("fashion_adversarial"), fashion.first(100)
    robust = {
        method: fperr.attack(
            model, images.x, images.y, radius=0.05, steps=20, loss=loss, method=method
        ).robust_accuracy
        for method in ("fgsm", "apgd", "pgd")
    }
    assert robust["apgd"] <= robust["fgsm"]
    assert abs(robust["apgd"] - robust["pgd"]) <= 0.03


class Tent(nn.Module):
    """Two logits whose difference is a tent in the mean of x: the loss has one peak, at `PEAK`."""

    def forward(self, x):
        height = 40 * (x.flatten(1).mean(1) - PEAK).abs()
        return torch.stack([height, torch.zeros_like(height)], 1)


PEAK = 0.6


def test_apgd_halves_its_step_where_the_value_stalls():
    """A step of twice the radius bounces between both ends: only halved ones reach the peak.

    The tent has slope 40 in x: a distance d to the peak is a margin of 40 d. Of 60 steps there are
    checkpoints after 13, 25, 36, 46, 55: at each that has falls in a quarter of its steps, the step
    halves, so the last steps are 2 * 0.5 / 2^5 at most, and the best point is no further than one.
    """
    x, steps = torch.full((1, 1), 0.5), []
    result = fperr.attack(
        Tent().eval(), x, torch.tensor([0]), radius=0.5, method="apgd", loss="ce", steps=60,
        random_start=False, freeze=False, on_step=lambda *step: steps.append(float(step[1])),
    )  # fmt: skip
    moves = np.abs(np.diff(steps))
    assert moves[2:12].min() > 0.1  # it bounced: with steps that do not halve it would go on
    assert moves[-4:].max() <= 2 * 0.5 / 2**5
    assert float(result.best_margin) <= 40 * 2 * 0.5 / 2**5
    assert abs(steps[-1] - PEAK) <= 2 * 0.5 / 2**5


@pytest.mark.parametrize("target", [1, 2])
def test_the_margin_is_negative_where_the_attack_has_succeeded(target):
    logits, y = torch.tensor([[1.0, 3.0, 2.5]]), torch.tensor([0])
    goal = Goal(loss_named("ce"), y, torch.tensor([target]), False, torch.zeros(1, 3))
    assert float(goal.margin(logits)) == {1: -0.5, 2: 0.5}[target]
    assert float(replace(goal, targets=None).margin(logits)) == -2.0
    is_reached, _, _ = goal.verdict(logits)
    assert bool(is_reached) == (target == 1)


def test_euclidean_attacks(fashion):
    model, images = zoo.load("fashion_standard"), fashion.first(20)
    found = fperr.attack(model, images.x, images.y, radius=1.0, steps=10, norm="l2")
    assert found.success.sum() > 10
    assert (found.excess_ulps <= 0).all()


def test_samples_that_have_succeeded_go_on_if_they_are_not_frozen(fashion):
    model, images = zoo.load("fashion_standard"), fashion.first(20)
    moved = {}
    for freeze in (True, False):
        points = []
        found = fperr.attack(
            model, images.x, images.y, radius=0.05, steps=6, freeze=freeze,
            on_step=lambda *step, kept=points: kept.append(step[1]),
        )  # fmt: skip
        fooled = (found.first_success_step >= 0) & (found.first_success_step < 5)
        assert fooled.sum() > 10
        moved[freeze] = (points[5] != points[4]).flatten(1).any(1)[fooled]
        with torch.no_grad():
            z = model(found.best).double()
        margin = z.gather(1, images.y[:, None])[:, 0]
        margin = margin - z.scatter(1, images.y[:, None], -torch.inf).amax(1)
        assert torch.equal(margin, found.best_margin)
        same = (found.best == found.adversarial).flatten(1).all(1)
        assert bool(same.all()) == freeze
    assert not moved[True].any()
    assert moved[False].all()


def test_gama_is_anchored_on_the_clean_image_and_lets_go(fashion):
    model, images = zoo.load("fashion_adversarial"), fashion.first(50)
    options = {"radius": 0.1, "steps": 8, "schedule": "constant", "step_size": 0.02}
    weights = []
    with torch.no_grad():
        clean = model(images.x).softmax(1)

    def seen(step, x, logits, gradient):
        """The weight that explains the gradient of the first sample: linear in it."""
        z = logits.double().requires_grad_()
        p = z.softmax(1)
        rest = p.scatter(1, images.y[:, None], 0).amax(1)
        gap = (rest - p.gather(1, images.y[:, None])[:, 0]).sum()
        (a,) = torch.autograd.grad(gap, z, retain_graph=True)
        (b,) = torch.autograd.grad((p - clean).square().sum(), z)
        leaf = x.clone().requires_grad_()
        again = model(leaf)
        g, h = (torch.autograd.grad(again, leaf, v.float(), retain_graph=True)[0] for v in (a, b))
        part = gradient - g
        weights.append(float((part * h).sum() / (h * h).sum()))

    found = fperr.attack(model, images.x, images.y, loss="gama:weight=5", on_step=seen, **options)
    # 5 (1 - 4 i/8) for i = 0, 1, then nothing; logits in float32 give it to 1e-3
    assert weights == pytest.approx([5.0, 2.5] + 6 * [0.0], abs=5e-3)
    plain = fperr.attack(model, images.x, images.y, loss="ce", **options)
    assert abs(found.robust_accuracy - plain.robust_accuracy) <= 0.1
    assert 0.05 < found.robust_accuracy < 0.95
    targets = (images.y + 1) % 10
    fperr.attack(model, images.x, images.y, loss="gama", targets=targets, method="apgd", **options)


def test_a_forced_scenario_changes_the_temperature(fashion):
    model, images = zoo.load("fashion_standard"), fashion.first(12)
    options = {"radius": 0.02, "steps": 4, "random_start": False}

    def gradients(**more):
        kept = []
        fperr.attack(
            model, images.x, images.y, on_step=lambda *s: kept.append(s[3]), **options, **more
        )
        return kept[0]

    plain = gradients(loss="tmifpe")
    right = gradients(loss="tmifpe", scenario="untargeted_unsuccessful")
    wrong = gradients(loss="tmifpe", scenario="untargeted_successful")
    with torch.no_grad():
        leads = model(images.x).argmax(1) == images.y
    assert torch.equal(plain[leads], right[leads])
    assert not torch.equal(plain[leads], wrong[leads])
    assert torch.equal(plain[~leads], wrong[~leads])
    fixed = gradients(loss="mifpe"), gradients(loss="mifpe", scenario="untargeted_successful")
    assert torch.equal(*fixed)


class Counting(TorchDispatchMode):
    """Counts what makes the host wait for a device: numbers read, shapes that follow data."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.waits += any(name in str(function) for name in self.WAITS)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["pgd", "apgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "stable_ce", "cw", "dlr", "mifpe", "tmifpe", "gama"])
def test_no_step_waits_for_the_device(loss, norm, method):
    """As many waits for 9 steps as for 3; control: a caller that reads a number in each of them."""
    x, y, model = uniform(4, 6), torch.tensor([0, 1, 2, 3]), tiny_mlp()

    def waits(steps, **more):
        attack = inspect.unwrap(fperr.attack)  # which refuses a mode of its caller
        with Counting() as counting:
            attack(
                model, x, y, radius=0.1, loss=loss, norm=norm, method=method, steps=steps, **more
            )
        return counting.waits

    assert waits(9) == waits(3)
    read = {"on_step": lambda *step: float(step[2].sum())}
    assert waits(9, **read) == waits(3, **read) + 6


@pytest.mark.gpu
def test_no_step_waits_for_cuda(fashion):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model, images = zoo.load("fashion_standard").cuda(), fashion.first(8)

    def watch(step, *_):
        torch.cuda.set_sync_debug_mode("error" if 1 <= step < 8 else "default")

    try:
        fperr.attack(model, images.x.cuda(), images.y.cuda(), radius=0.05, steps=8, on_step=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Poisoned(nn.Module):
    """Infinite gradients for samples whose first number is above 1/2."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_mlp()

    def forward(self, x):
        bad = (x[:, :1] > 0.5).float()
        return self.inner(x) + bad * (x[:, :1] - x[:, :1].detach() + 1 - bad).sqrt()


def test_gradients_that_are_not_finite_mark_their_sample_only():
    x = uniform(6, 6)
    x[:, 0] = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7])
    with torch.no_grad():
        y = Poisoned().eval()(x).argmax(1)
    found = fperr.attack(Poisoned().eval(), x, y, radius=0.01, steps=3, random_start=False)
    assert found.is_finite.tolist() == [True, False] * 3
    assert found.adversarial.isfinite().all()


def test_logits_that_are_not_finite_are_no_success_and_said():
    class Broken(nn.Module):
        def forward(self, x):
            return tiny_mlp()(x) * torch.where(x[:, :1] > 0.5, torch.nan, 1.0)

    x = uniform(4, 6)
    x[:, 0] = torch.tensor([0.1, 0.9, 0.2, 0.8])
    with pytest.warns(UnjudgedWarning, match="2 of 4 could not be judged"):
        found = fperr.attack(Broken().eval(), x, torch.zeros(4, dtype=torch.int64), radius=0.01)
    assert found.is_finite.tolist() == [True, False] * 2
    assert not found.is_judged[1::2].any()
    assert not found.success[1::2].any()


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny_mlp()

    def forward(self, x):
        return self.inner(x).detach()


def test_a_model_without_a_graph_is_refused():
    with pytest.raises(ModelError, match="detaches its graph"):
        fperr.attack(Detached().eval(), uniform(2, 6), torch.tensor([0, 1]), radius=0.1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"radius": 0.0}, "radius must be"),
        ({"radius": -1.0}, "radius must be"),
        ({"steps": 0}, "steps must be"),
        ({"x": 2 * uniform(3, 6)}, "box"),
        ({"targets": torch.tensor([0, 1, 2])}, "targets equal y at sample 0"),
        ({"targets": torch.tensor([1, 2, 9])}, "from 0 to 3, got values from 1 to 9"),
        ({"y": torch.tensor([0, 1])}, r"y must have shape \(3,\)"),
        ({"method": "cw"}, "pgd, fgsm, apgd"),
        ({"format": "float8"}, "exact"),
        ({"norm": "l1"}, "linf, l2"),
        ({"schedule": "step"}, "cosine"),
        ({"momentum": 1.0}, "momentum"),
        ({"restarts": 0}, "restarts"),
        ({"loss": "xent"}, "unknown loss"),
        ({"loss": "gama:weight=-1"}, "positive"),
        ({"loss": "gama", "format": "exact"}, "no exact gradient"),
        ({"loss": "ce", "scenario": "untargeted_successful"}, "MIFPE"),
        ({"loss": "tmifpe:scenario=targeted_successful"}, "none of untargeted attacks"),
        ({"method": "fgsm", "restarts": 2}, "one step"),
        ({"restarts": 2.0}, "restarts"),
        ({"steps": 2.0}, "steps"),
        ({"box": (1, 0)}, "lowest, highest"),
        ({"loss": "tmifpe", "scenario": "successful"}, "unknown scenario"),
        ({"loss": "tmifpe", "scenario": "targeted_successful"}, "none of untargeted attacks"),
        ({"x": uniform(3, 6, dtype=torch.float64) * torch.nan}, "box"),
    ],
)
def test_bad_input_says_what_to_do(change, match):
    arguments = {"x": uniform(3, 6), "y": torch.tensor([0, 1, 2]), "radius": 0.1, **change}
    x, y = arguments.pop("x"), arguments.pop("y")
    with pytest.raises((TypeError, ValueError), match=match):
        fperr.attack(tiny_mlp(), x, y, **arguments)
