"""The recorder: real attacks of five libraries, unchanged, described, compared with the truth."""

import copy
import math
import subprocess
import sys
import textwrap
from contextlib import nullcontext

import mpmath
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fperr
from fperr import zoo
from fperr.errors import MissingDataError
from fperr.exact.precision import bits_of
from fperr.formats import FLOAT32
from fperr.networks.exact_network import ExactNetwork
from fperr.networks.in_format import FormatNetwork
from fperr.recording.recorder import Recorder
from fperr.recording.sample_matching import SampleMatcher
from tests.attacks.test_attacks import uniform
from tests.conftest import normal, seeded, tiny_mlp
from tests.makers.libraries import attacks

RADIUS = 0.02
# forward passes, gradients, loss and reduction of 10 steps (FAB: 3) on samples not yet fooled
WANTED = {
    "pyautoattack APGD-CE": (12, 11, "ce", "sum"),
    "pyautoattack APGD-T": (25, 22, "dlr", "sum"),
    "pyautoattack FAB": (9, 30, "logit", "sum"),
    "torchattacks PGD": (10, 10, "ce", "mean"),
    "torchattacks APGD": (12, 11, "ce", "sum"),
    "foolbox LinfPGD": (11, 10, "ce", "sum"),
    "ART PGD": (12, 10, "ce", "mean"),
    "ART APGD": (24, 10, "ce", "mean"),
    "adv_lib PGD": (10, 10, "ce", "sum"),
    "adv_lib APGD": (11, 11, "dlr", "sum"),
}


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def run(attack, model, x, y):
    torch.manual_seed(0)
    np.random.seed(0)
    return attack(model, x, y)


def descent(model, x, y, loss=cross_entropy, steps=3, size=0.01):
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(model(x), y), x)
        x = (x + size * g.sign()).clamp(0, 1)
    return x.detach()


@pytest.fixture
def vandal(monkeypatch):
    """After it has been written, whatever the recorder holds is destroyed in place."""
    drain = Recorder.drain

    def drain_and_destroy(self):
        held = [part for step in self.waiting for part in (step.logits, step.v)]
        for _, backward in self.to_compare:
            held += [backward.gradient, backward.forward.note.compared.x]
        drain(self)
        for part in held:
            part.fill_(torch.nan)

    monkeypatch.setattr(Recorder, "drain", drain_and_destroy)


@pytest.mark.parametrize("is_sequential", [True, False])
@pytest.mark.parametrize("name", WANTED)
def test_attacks_of_libraries(name, is_sequential, fashion, vandal):
    images = fashion.first(12)
    model = zoo.load("fashion_adversarial")
    model = model if is_sequential else Wrapped(model).eval()
    assert isinstance(model, nn.Sequential) == is_sequential
    attack = attacks(RADIUS)[name]
    alone = run(attack, model, images.x, images.y)
    samples = 1 if name in ("torchattacks PGD", "pyautoattack FAB") else 0
    with fperr.record(model, images.x, images.y, samples=samples) as trace:
        recorded = run(attack, model, images.x, images.y)
    assert torch.equal(alone, recorded)
    forwards, gradients, loss, reduction = WANTED[name]
    assert (trace.about["forwards"], trace.about["gradients"]) == (forwards, gradients)
    steps = trace.steps()
    assert len(steps) == gradients * 12
    assert set(steps["loss"]) == {loss}
    assert set(steps["reduction"]) == {reduction}
    targeted = name == "pyautoattack APGD-T"
    kinds = {str(s).startswith("targeted") for s in steps["scenario"]}
    assert kinds == {targeted}
    assert not [h for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks) if h]


def test_survivors_keep_their_numbers(fashion):
    """AutoAttack's own loop: batches, of which it attacks what still resists."""
    images = fashion.first(40)
    model = zoo.load("fashion_adversarial")
    attack = attacks(RADIUS)["pyautoattack APGD-CE"]
    with torch.no_grad():
        resists = model(images.x).argmax(1) == images.y
    assert 0 < int((~resists).sum()) < 40
    with fperr.record(model, images.x, images.y, samples=[int(resists.nonzero()[-1])]) as trace:
        for part in (slice(0, 15), slice(15, 40)):
            mine = resists[part]
            run(attack, model, images.x[part][mine], images.y[part][mine])
    found = trace.steps(["step", "sample", "label"])
    for step, rows in found.groupby("step"):
        part = range(15) if step < 11 else range(15, 40)
        assert list(rows["sample"]) == [i for i in part if resists[i]]
        assert list(rows["label"]) == images.y[list(rows["sample"])].tolist()
    assert set(trace.errors()["sample"]) == {int(resists.nonzero()[-1])}


def test_parts_of_a_batch_need_the_inputs(fashion):
    images = fashion.first(6)
    model = zoo.load("fashion_adversarial")
    with (
        pytest.raises(ValueError, match=r"record\(model, x, y\)"),
        fperr.record(model, None, images.y, samples=0),
    ):
        descent(model, images.x[:3], images.y[:3])


@pytest.mark.parametrize("seed", range(5))
def test_identities_are_those_of_the_nearest_input(seed):
    originals = uniform(30, 20, seed=seed)
    matcher = SampleMatcher(30, originals)
    generator = torch.Generator().manual_seed(seed)
    for size in (0.0, 0.05, 0.2, 0.5, 2.0):
        for _ in range(4):  # repeated lengths meet what is kept from the call before
            chosen = torch.randperm(30, generator=generator)[:7]
            x = originals[chosen] + size * (uniform(7, 20, seed=seed + 9) - 0.5)
            nearest = torch.cdist(x, originals, p=torch.inf).argmin(1)
            assert torch.equal(matcher.samples_of(x), nearest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inputs_in_half_formats_are_told_apart(dtype):
    originals, chosen = uniform(30, 20, dtype=dtype), torch.tensor([7, 3, 21])
    assert torch.equal(SampleMatcher(30, originals).samples_of(originals[chosen]), chosen)


@pytest.mark.slow
def test_errors_are_those_of_measure(fashion):
    """Two ways to the same numbers: the recorder along an attack, measure at its points."""
    images = fashion.first(4)
    model = zoo.load("fashion_standard")
    losses, formats = ["ce", "stable_ce", "tmifpe"], ["float16", "float32", "float64"]
    with fperr.record(
        model, None, images.y, losses=losses, formats=formats, every=1, samples=4
    ) as trace:
        descent(model, images.x, images.y, steps=2)
    errors = trace.errors()
    points = trace.points()
    assert len(errors) == 2 * 4 * (1 + len(losses) * len(formats))
    assert bool(errors["is_certified"].all())
    for step in (0, 1):
        x = torch.tensor(np.stack(points[points["step"] == step]["x"]))
        x = x.float().reshape(images.x.shape)
        report = fperr.measure(model, x, images.y, losses=losses, formats=formats)
        keys = ["sample", "loss", "format"]
        mine = errors[(errors["step"] == step) & ~errors["is_own"]].set_index(keys).sort_index()
        theirs = report.frame.set_index(keys).sort_index()
        assert list(mine["scenario"]) == list(theirs["format_scenario"])
        for column in ("delta", "sign_error_rate", "zero_rate", "cosine_distance", "c"):
            # references off by 1e-20 each against errors of 1e-16: 2e-4, and twice that for 1 - cos
            np.testing.assert_allclose(mine[column], theirs[column], rtol=1e-3, atol=0)
        own = errors[(errors["step"] == step) & errors["is_own"]].set_index("sample")
        mean = fperr.measure(
            model, x, images.y, losses=["ce"], formats=["float32"], reduction="mean"
        ).frame.set_index("sample")
        assert set(own["loss"]) == {"ce"}
        assert bool(own["is_rerun_equal"].all())
        # float32's errors are 1e-8 and more: what references leave is below float64's own
        np.testing.assert_allclose(own["delta"], mean["delta"], rtol=1e-9)


@pytest.mark.parametrize("by_rows", [True, False])
def test_products_say_how_far_they_are_off(by_rows):
    """What an unknown loss is compared with: engines are within their claims of 60 digits."""
    # tanh: without it the balls of a rational network may have no radius at all
    model = seeded(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)))
    x, v = uniform(1, 6), normal(4)
    network = FormatNetwork(model, FLOAT32, autocast=False)

    def product(engine, digits):
        bits = bits_of(digits)
        reference = ExactNetwork(network, x, [engine], bits, by_rows=by_rows)
        (sample,) = reference.samples(x, [bits], lambda: None)
        found = sample.product(v, bits)
        numbers = found.vectors.numbers(found.product)[0]
        return [mpmath.make_mpf(n._mpf_) for n in numbers], found.log2_error

    with mpmath.workdps(80):
        truth, proved = product("ball", 60)
        assert proved < -60 * math.log2(10)
        size = mpmath.sqrt(mpmath.fsum(t * t for t in truth))
        for engine, digits in (("ball", 20), ("double_word", 20), ("float64", 10)):
            found, log2_error = product(engine, digits)
            assert -math.inf < log2_error < -digits * math.log2(10)
            off = mpmath.sqrt(mpmath.fsum((a - b) ** 2 for a, b in zip(found, truth, strict=True)))
            # vectors hold 100 bits and more: nothing beside 20 digits
            assert off <= (mpmath.mpf(2) ** log2_error + mpmath.mpf(2) ** -100) * size


def test_what_is_not_the_networks_own_is_told_apart():
    model, x, y = tiny_mlp().eval(), uniform(5, 6), torch.arange(5) % 4

    def penalised():
        leaf = x.clone().requires_grad_()
        (cross_entropy(model(leaf), y) + leaf.square().sum()).backward()

    def plain():
        leaf = x.clone().requires_grad_()
        cross_entropy(model(leaf), y).backward()

    def expected():
        leaf = x.clone().requires_grad_()
        (cross_entropy(model(leaf), y) + cross_entropy(model(leaf), y)).backward()

    more = pytest.warns(UserWarning, match=r"4 of 4 compared rows \(step 0\) more than the network")
    for attack, equal, count, said in (
        (plain, {True}, 1, nullcontext()),
        (penalised, {False}, 1, more),
        (expected, {None}, 2, nullcontext()),
    ):
        settings = {"every": 1, "losses": ["ce"], "formats": ["float32"]}
        with said, fperr.record(model, None, y, **settings) as trace:
            attack()
        errors = trace.errors()
        own = errors[errors["is_own"]]
        assert trace.gradients == count
        assert set(own["is_rerun_equal"]) == equal
        # what is no error does not stand under the name of one
        assert bool(own["delta"].isna().all()) == (attack is not plain)
        assert bool(own["relative_difference"].notna().all()) == (attack is penalised)
        assert bool(own["reason"].isna().all()) == (attack is plain)
        assert bool(trace.diagnosis()) == (attack is penalised)
        (axis,) = trace.plot.relative_error().axes
        drawn = [line for line in axis.get_lines() if len(line.get_ydata())]
        assert len(drawn) == (2 if attack is plain else 1)
    # an unknown loss: the exact gradient is that of its own logit gradient
    with (
        pytest.warns(UserWarning, match="the loss of 3 of 3 gradient steps is none of those tried"),
        fperr.record(model, None, y, every=1, losses=[], formats=[]) as trace,
    ):
        descent(model, x, y, lambda z, y: cross_entropy(z, y, label_smoothing=0.1))
    own = trace.errors()
    assert set(own["loss"]) == {"unknown"}
    assert set(own["compared_with"]) == {"logit gradient"}
    assert own["network_delta"].between(1e-9, 1e-5).all()
    assert own["delta"].isna().all()
    (axis,) = trace.plot.relative_error().axes
    (label,) = [t.get_text() for t in trace.plot.relative_error().legends[0].get_texts()]
    assert "without" in label
    drawn = [line.get_ydata() for line in axis.get_lines() if len(line.get_ydata())]
    medians = own.groupby("step")["network_delta"].median()
    np.testing.assert_allclose(drawn[0], medians, rtol=1e-12)


def test_our_own_attacks_and_copies_of_the_model(fashion):
    """float16 attacks run on a copy of the network: its hooks report, too."""
    images = fashion.first(3)
    model = zoo.load("fashion_adversarial")
    with fperr.record(model, None, images.y, every=4, samples=1, formats=["float16"]) as trace:
        fperr.attack(
            model, images.x, images.y, radius=RADIUS, steps=5, loss="tmifpe", format="float16"
        )
    steps = trace.steps()
    assert set(steps["format"]) == {"float16"}
    assert set(steps["loss"]) == {"tmifpe"}
    assert trace.gradients == 5
    own = trace.errors()[lambda e: e["is_own"]]
    assert own["delta"].between(1e-5, 1e-1).all()


def test_formats_may_change_on_the_way():
    model, x, y = tiny_mlp().eval(), uniform(5, 6), torch.arange(5) % 4
    with fperr.record(model, None, y, samples=0) as trace:
        for twin in (model, copy.deepcopy(model).double(), copy.deepcopy(model).half()):
            dtype = next(twin.parameters()).dtype
            descent(twin, x.to(dtype), y, steps=2)
    formats = trace.steps().groupby("step")["format"].agg(lambda f: set(f)).tolist()
    assert formats == 2 * [{"float32"}] + 2 * [{"float64"}] + 2 * [{"float16"}]
    assert set(trace.steps()["loss"]) == {"ce"}


@pytest.mark.slow
def test_a_trace_survives_a_kill(tmp_path):
    code = """
        import os, sys, torch, fperr
        from fperr.recording import trace_files
        from tests.conftest import tiny_mlp
        from tests.attacks.test_attacks import uniform
        trace_files._SECONDS = 0.0
        model, x, y = tiny_mlp().eval(), uniform(5, 6), torch.arange(5) % 4
        with fperr.record(model, None, y, out=sys.argv[1], every=2, formats=["float32"]):
            for i in range(7):
                if i == 6:
                    model(x)  # what came before is written when the model is called again
                    os.kill(os.getpid(), 9)
                leaf = x.clone().requires_grad_()
                model(leaf).sum().backward()
    """
    folder = tmp_path / "trace"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(folder)], check=False)
    assert done.returncode == -9
    trace = fperr.Trace(folder)
    assert not trace.about["is_complete"]
    assert "not complete" in repr(trace)
    assert trace.gradients == 6
    assert sorted(set(trace.errors(["step"])["step"])) == [0, 2, 4]
    with (
        pytest.raises(ValueError, match="not an empty folder"),
        fperr.record(tiny_mlp().eval(), None, torch.zeros(2, dtype=torch.int64), out=folder),
    ):
        pass


def test_figures_draw_what_the_tables_hold(fashion):
    images = fashion.first(6)
    model = zoo.load("fashion_standard")
    with fperr.record(model, None, images.y, every=1, samples=3) as trace:
        descent(model, images.x, images.y, steps=4)
    figure = trace.plot.relative_error()
    errors = trace.errors()
    for axis in figure.axes:
        rows = errors[(errors["format"] == axis.get_title()) & ~errors["is_own"]]
        medians = rows.groupby(["loss", "step"])["delta"].median()
        drawn = [line.get_ydata() for line in axis.get_lines() if len(line.get_ydata())]
        for loss in ("ce", "stable_ce", "mifpe", "tmifpe"):
            wanted = medians[loss].to_numpy()
            assert any(len(d) == 4 and np.allclose(d, wanted, rtol=1e-12) for d in drawn)
    for name, column in (
        ("margins", "label_margin"),
        ("t_star", "t_star"),
        ("zeros", "zero_share"),
    ):
        axis = getattr(trace.plot, name)().axes[0]
        wanted = trace.steps().groupby("step")[column].median().to_numpy()
        np.testing.assert_allclose(axis.get_lines()[0].get_ydata(), wanted, rtol=1e-12)


class Normalised(nn.Sequential):
    """As many write it: a Sequential that does more than its children."""

    def forward(self, x):
        return super().forward((x - 0.5) / 0.25) / 10


def noisy(model, x, y):
    """An attack that draws random numbers in every step."""
    for _ in range(3):
        x = descent(model, (x + 0.01 * torch.randn(x.shape)).clamp(0, 1), y, steps=1)
        with torch.inference_mode():
            model(x)
    return x


@pytest.mark.parametrize("kind", ["plain", "hooked", "normalised", "hooks of others"])
def test_random_numbers_modes_and_models_of_all_kinds(kind):
    inner, x = tiny_mlp().eval(), uniform(5, 6)
    model = Normalised(*inner).eval() if kind == "normalised" else inner
    if kind == "hooks of others":
        model.register_forward_pre_hook(lambda _, inputs: ((inputs[0] - 0.5) * 2,))
    y = torch.arange(5) % 4
    alone = run(noisy, model, x, y)
    state = torch.get_rng_state()
    settings = {"every": 1, "samples": 5, "losses": ["mifpe"], "formats": ["float32"]}
    with (
        fperr.record(model, None, y, **settings) as trace,
        torch.autograd.set_detect_anomaly(mode=True),
    ):
        if kind == "hooked":
            with fperr.record(model, None, y, **settings) as inside:
                recorded = run(noisy, model, x, y)
            assert inside.gradients == 3
        else:
            recorded = run(noisy, model, x, y)
    assert torch.equal(alone, recorded)
    assert torch.equal(state, torch.get_rng_state())
    errors = trace.errors()
    own = errors[errors["is_own"]]
    assert set(own["loss"]) == {"ce"}
    assert bool(own["is_rerun_equal"].all())
    assert bool((errors["delta"] < 1e-4).all())


def test_copies_fall_silent_when_it_is_over():
    model, x, y = tiny_mlp().eval(), uniform(5, 6), torch.arange(5) % 4
    with fperr.record(model, None, y, samples=0) as trace:
        twin = copy.deepcopy(model)
        descent(twin, x, y, steps=2)
    count = len(trace.steps())
    assert count == 10
    descent(twin, x, y, steps=2)
    assert len(trace.steps()) == count


def test_a_gradient_that_stops_at_the_logits_is_none_of_the_input():
    model, x, y = tiny_mlp().eval(), uniform(5, 6), torch.arange(5) % 4
    with fperr.record(model, None, y, every=1, samples=1, losses=[], formats=[]) as trace:
        leaf = x.clone().requires_grad_()
        z = model(leaf)
        torch.autograd.grad(cross_entropy(z, y), z)
        z = model(leaf)
        torch.autograd.grad(cross_entropy(z, y), leaf)
    assert trace.gradients == 1
    assert set(trace.steps()["forward"]) == {1}
    assert trace.errors()["delta"].notna().all()


def test_orders_and_uncertain_samples():
    model, x, y = tiny_mlp().eval(), uniform(5, 6), torch.arange(5) % 4
    order = torch.tensor([3, 1, 4, 0, 2])
    with fperr.record(model, x, y, samples=0) as trace:
        descent(model, x[order], y[order], steps=1, size=0.0)
    assert trace.steps()["sample"].tolist() == order.tolist()
    with (
        pytest.warns(UserWarning, match="likely, not certain"),
        fperr.record(model, x * 255, y, samples=0),
    ):
        descent(model, x[:3], y[:3], steps=1)
    with (
        pytest.raises(ValueError, match="give record"),
        fperr.record(model, x[:, :3], y, samples=0),
    ):
        descent(model, x, y)
    with (
        pytest.raises(ValueError, match="between 0 and 3"),
        fperr.record(model, None, y + 3, samples=0),
    ):
        descent(model, x, y)


def test_nothing_recorded_is_said():
    model, y = tiny_mlp().eval(), torch.zeros(2, dtype=torch.int64)
    with (
        pytest.warns(UserWarning, match="no gradient was recorded in 1 forward passes"),
        fperr.record(model, None, y),
        torch.no_grad(),
    ):
        model(uniform(2, 6))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y": torch.zeros(2)}, "int64"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "as many as y"),
        ({"x": uniform(3, 6)}, "one length"),
        ({"every": 0}, "every"),
        ({"every": 1.5}, "every must be a whole number"),
        ({"every": True}, "every must be a whole number"),
        ({"digits": True}, "digits must be a whole number"),
        ({"samples": True}, "samples must be a number or a list"),
        ({"samples": [True]}, "samples must be a number or a list"),
        (
            {"x": torch.zeros(2, 6, dtype=torch.int64)},
            r"floating point.*convert it, e\.g\. x\.float\(\)",
        ),
        ({"x": torch.full((2, 6), torch.nan)}, "NaN or infinite entries"),
        ({"x": torch.tensor(1.0)}, "one length"),
        ({"loss": 3}, r"a function loss\(logits, y, targets\)"),
        ({"loss": "what"}, "unknown loss"),
        ({"logits": True}, "logits must be a name, an index or a function"),
        ({"digits": 0}, "digits must be a whole number from 10 to 24"),
        ({"samples": "all"}, "samples must be a number or a list"),
        ({"y": [0, 0]}, "y must be a tensor"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, "differ from y"),
        ({"losses": ["gama"]}, "leave it out"),
        ({"samples": [2]}, "between 0 and 1"),
        ({"samples": -1}, "between 0 and 1"),
        ({"losses": ["what"]}, "unknown loss"),
        ({"formats": ["what"]}, "unknown format"),
        ({"formats": ["tf32"]}, "CUDA"),
        ({"model": tiny_mlp().train()}, "evaluation mode"),
        ({"model": len}, "nn.Module"),
    ],
)
def test_bad_input_says_what_to_do(change, match):
    request = {"model": tiny_mlp().eval(), "x": None, "y": torch.zeros(2, dtype=torch.int64)}
    request |= change
    with pytest.raises((ValueError, TypeError), match=match), fperr.record(**request):
        pass


def test_models_that_cannot_be_recorded():
    relu = nn.ReLU()
    twice = nn.Sequential(relu, nn.Linear(6, 4), relu).eval()
    y = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="occurs in it twice"), fperr.record(twice, None, y):
        pass

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    pair = Pair().eval()
    with pytest.raises(ValueError, match="return logits"), fperr.record(pair, None, y, samples=0):
        pair(uniform(2, 6))
    pixels = nn.Conv2d(1, 5, 3).eval()
    x, match = uniform(2, 1, 8, 8), r"logits \(batch, K\) of at least 2 classes.*5, 6, 6"
    with pytest.raises(ValueError, match=match), fperr.record(pixels, None, y):
        pixels(x)
    with pytest.raises(ValueError, match=match), fperr.record(pixels, x, y):
        pytest.fail("it is refused before the attack starts")


def test_no_trace_there(tmp_path):
    with pytest.raises(MissingDataError, match=r"trace\.json is missing"):
        fperr.Trace(tmp_path)


@pytest.mark.gpu
def test_the_whole_path_on_a_device(fashion):
    """Attack, record, measure on CUDA."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images = fashion.first(4)
    x, y = images.x.cuda(), images.y.cuda()
    model = zoo.load("fashion_standard").cuda()
    with fperr.record(model, x, y, every=5, samples=2) as trace:
        result = fperr.attack(model, x, y, radius=0.05, steps=10)
    assert trace.gradients == 10
    assert set(trace.steps()["loss"]) == {"tmifpe"}
    errors = trace.errors()
    assert bool(errors["is_certified"].all())
    report = fperr.measure(model, result.adversarial, y, losses=["tmifpe"], formats=["float32"])
    assert report.frame["delta"].max() < 1e-4
