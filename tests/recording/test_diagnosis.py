"""Faults of the attack or the model are said in sentences; an attack without any has none."""

import json
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fperr
from fperr import storage, zoo
from fperr.errors import ModelError
from tests.attacks.test_attacks import uniform
from tests.conftest import Of, normal, seeded, tiny_mlp
from tests.makers.libraries import attacks, torchattacks
from tests.recording.test_recording import RADIUS, descent, run

LITTLE = {"every": 1, "losses": ["ce"], "formats": ["float32"]}


def with_batch_norm():
    body = nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 169, 10)
    return seeded(nn.Sequential(*body))


def diagnosed(model, y, attack, x=None, **settings):
    """The trace of an attack, whose warnings are its diagnosis."""
    settings = {**LITTLE, "samples": 3, **settings}
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with fperr.record(model, x, y, **settings) as trace:
            attack()
    said = [str(one.message) for one in heard if one.category is UserWarning]
    assert said == trace.diagnosis() == trace.about["diagnosis"]
    return trace


@pytest.mark.parametrize("name", ["torchattacks PGD", "foolbox LinfPGD", "ART PGD"])
def test_clean_attacks_have_no_diagnosis(name, fashion):
    images, model = fashion.first(6), zoo.load("fashion_standard")
    attack = attacks(RADIUS, steps=3)[name]
    trace = diagnosed(
        model, images.y, lambda: run(attack, model, images.x, images.y), x=images.x, samples=1
    )
    assert trace.diagnosis() == []
    assert "diagnosis" not in repr(trace)
    own = trace.errors()[lambda e: e["is_own"]]
    assert own["reason"].isna().all()
    assert not trace.steps()["is_training"].any()


@pytest.mark.parametrize("is_switched_on", [False, True])
def test_training_mode(fashion, is_switched_on):
    """By torchattacks' own switch: from the first step on, or on the way."""
    images, model = fashion.first(6), with_batch_norm()

    def attack():
        pgd = torchattacks.PGD(model, eps=RADIUS, alpha=RADIUS / 4, steps=2)
        if is_switched_on:
            pgd(images.x, images.y)
        pgd.set_model_training_mode(model_training=True, batchnorm_training=True)
        pgd(images.x, images.y)

    trace = diagnosed(model, images.y, attack, x=images.x)
    first, count = (2, 4) if is_switched_on else (0, 2)
    (sentence,) = trace.diagnosis()
    said = f"training mode in step {first} to {first + 1} (2 of {count} steps)"
    assert said in sentence
    assert "1 found in diagnosis()" in repr(trace)
    steps, errors = trace.steps(), trace.errors()
    assert (steps["is_training"] == (steps["step"] >= first)).all()
    late, early = (errors[errors["step"].ge(first) == is_late] for is_late in (True, False))
    assert len(late) == 2 * 3  # own rows alone: the exact network is another one
    assert set(late["compared_with"]) == {"nothing"}
    assert late["reason"].str.contains("training mode").all()
    numbers = ["delta", "network_delta", "relative_difference", "logit_gradient_delta"]
    assert late[numbers].isna().all(axis=None)
    assert (early["delta"] < 1e-3).all()
    assert len(early) == (2 * 3 * 2 if is_switched_on else 0)


@pytest.mark.parametrize("is_saturated", [True, False])
def test_logit_gradients_that_are_zero(fashion, is_saturated):
    images = fashion.first(8)
    model = zoo.load("fashion_saturated" if is_saturated else "fashion_adversarial")

    def attack():
        descent(model, images.x, images.y, lambda z, y: F.cross_entropy(z.softmax(1), y), steps=2)

    said = diagnosed(model, images.y, attack, samples=1).diagnosis()
    zero = "dL/dz was exactly 0 at step 0 to 1 for 8 of 8 samples: the loss, not the network"
    assert [s.startswith(zero) for s in said] == [is_saturated]


def test_zero_where_nothing_is_left_to_do_is_no_fault(fashion):
    """A hinge is flat where the attack has succeeded."""
    images, model = fashion.first(6), zoo.load("fashion_standard")
    y = (images.y + 1) % 10  # all of them are fooled from the start

    def hinge(z, y):
        own = z.gather(1, y[:, None])[:, 0]
        other = z.scatter(1, y[:, None], -torch.inf).amax(1)
        return (other - own).clamp(max=0).sum()

    trace = diagnosed(model, y, lambda: descent(model, images.x, y, hinge, steps=2), samples=0)
    assert trace.steps()["is_logit_gradient_zero"].all()
    assert trace.diagnosis() == []


def test_the_direction_of_the_loss(fashion):
    images, model = fashion.first(6), zoo.load("fashion_standard")
    x, y = images.x, images.y

    def falling(z, y):
        return -F.cross_entropy(z, y)

    trace = diagnosed(model, y, lambda: descent(model, x, y, falling, steps=3), samples=0)
    (sentence,) = trace.diagnosis()
    said = "factor is negative: the attack lowers the loss of y in step 0 to 2 (3 of 3 steps)"
    assert sentence.startswith(said)
    assert "rose along it for 6 of 6 samples" in sentence
    (sentence,) = diagnosed(
        model, y, lambda: descent(model, x, y, falling, steps=1), samples=0
    ).diagnosis()
    assert "right only where it subtracts" in sentence
    # what is negative and right: a minimiser, and targets
    minimised = diagnosed(
        model, y, lambda: descent(model, x, y, falling, steps=3, size=-0.01), samples=0
    )
    assert minimised.diagnosis() == []
    assert (minimised.steps()["factor"] < 0).all()
    targets = (y + 1) % 10
    for known in (None, targets):
        targeted = diagnosed(
            model,
            y,
            lambda: descent(model, x, y, lambda z, _: -F.cross_entropy(z, targets), steps=2),
            targets=known,
            samples=0,
        )
        assert targeted.diagnosis() == []


def test_a_model_that_changes_on_the_way():
    model, x, y = tiny_mlp(), uniform(5, 6), torch.arange(5) % 4

    def attack():
        at = descent(model, x, y, steps=1)
        with torch.no_grad():
            model[0].weight.mul_(1.5)
        descent(model, at, y, steps=2)

    trace = diagnosed(model, y, attack)
    (sentence,) = trace.diagnosis()
    assert sentence.startswith("in 6 of 9 compared rows (step 1 to 2) the network, run again at")
    own = trace.errors()[lambda e: e["is_own"]]
    assert own["delta"].isna().tolist() == 3 * [False] + 6 * [True]
    assert own["is_logit_rerun_equal"].tolist() == 3 * [True] + 6 * [False]


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny_mlp()

    def forward(self, x):
        return self.inner(x + 0.01 * torch.randn_like(x))


def over_the_batch(z):
    return z - z.mean(0)


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize(
    ("model", "match"),
    [(Noisy(), "depends on randomness"), (nn.Sequential(tiny_mlp(), Of(over_the_batch)), "batch")],
)
def test_models_that_are_no_function_of_one_sample(is_given, model, match):
    """As `measure` refuses them: before the attack where x is given, else at its first step."""
    x, y = uniform(5, 6), torch.arange(5) % 4
    model.eval()

    def attack(**options):
        with fperr.record(model, x if is_given else None, y, **options):
            assert not is_given
            descent(model, x, y, steps=2)

    for options in (LITTLE, {"samples": 0}):  # also where nothing is compared
        with pytest.raises(ModelError, match=match):
            attack(**options)


@pytest.mark.parametrize("is_given", [True, False])
def test_probabilities(is_given):
    model, x, y = (
        nn.Sequential(tiny_mlp(), nn.Softmax(1)).eval(),
        uniform(5, 6),
        torch.arange(5) % 4,
    )
    clean = x if is_given else None

    def attack(**settings):
        with fperr.record(model, clean, y, samples=0, **settings) as trace:
            descent(model, x, y, lambda z, y: -z.gather(1, y[:, None]).sum(), steps=1)
        return trace

    with pytest.raises(ValueError, match=r"leave out its .*accept_probabilities=True"):
        attack()
    assert attack(accept_probabilities=True).gradients == 1  # the remedy
    with fperr.record(model[0], clean, y, samples=0) as trace:  # and the other one
        descent(model[0], x, y, steps=1)
    assert trace.gradients == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers(value):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_mlp()

        def forward(self, x):
            z = self.inner(x)
            return torch.where((x[:, :1] > 5) & (torch.arange(4) == 2), value, z)

    model, x, y = Broken().eval(), uniform(5, 6), torch.arange(5) % 4

    def attack():
        descent(model, x, y, steps=1)
        bad = x.clone()
        bad[1, 0] = 9.0
        descent(model, bad, y, steps=1)

    trace = diagnosed(model, y, attack, x=x, losses=[], formats=[])
    (sentence,) = [s for s in trace.diagnosis() if "not finite" in s]
    assert sentence.startswith("logits or dL/dx were not finite in step 1 (1 of 10 rows)")
    steps = trace.steps()
    assert steps["is_finite"].tolist() == [True] * 6 + [False] + [True] * 3
    own = trace.errors().set_index(["step", "sample"])
    assert own["delta"].isna().tolist() == [False] * 4 + [True, False]
    assert own["reason"].notna().tolist() == [False] * 4 + [True, False]


@pytest.mark.parametrize("mask", [[False, False, True, False], [False, True, True, False]])
def test_masked_classes_are_absent(mask):
    """Minus infinity is no fault, and the numbers are those of the network without them."""
    inner, x = tiny_mlp(), uniform(5, 6)
    present = [i for i, masked in enumerate(mask) if not masked]
    y = torch.tensor([present[i % len(present)] for i in range(5)])
    masked = nn.Sequential(inner, Of(lambda z: z.masked_fill(torch.tensor(mask), -torch.inf)))
    smaller = nn.Sequential(inner, Of(lambda z: z[:, present]))
    place = {label: i for i, label in enumerate(present)}
    renamed = torch.tensor([place[int(label)] for label in y])
    settings = {"losses": ["ce", "tmifpe"]}
    traces = [
        diagnosed(m.eval(), labels, lambda m=m, labels=labels: descent(m, x, labels), **settings)
        for m, labels in ((masked, y), (smaller, renamed))
    ]
    for trace in traces:
        assert trace.diagnosis() == []
        assert set(trace.steps()["loss"]) == {"ce"}
        assert trace.steps()["is_finite"].all()
        assert (trace.errors()["delta"] < 1e-4).all()
    ours, theirs = (trace.errors() for trace in traces)
    assert ours["delta"].tolist() == pytest.approx(theirs["delta"].tolist(), rel=0.5)


@pytest.mark.parametrize("name", ["torchattacks PGD", "foolbox LinfPGD"])
def test_two_classes(name):
    body = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)
    model, x, y = seeded(nn.Sequential(*body)), uniform(5, 6), torch.arange(5) % 2
    attack = attacks(RADIUS, steps=3)[name]
    trace = diagnosed(model, y, lambda: run(attack, model, x, y), x=x)
    assert trace.diagnosis() == []
    assert set(trace.steps()["loss"]) == {"ce"}
    assert (trace.errors()["delta"] < 1e-4).all()


@dataclass
class Output:
    logits: Tensor
    features: Tensor


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = tiny_mlp(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize(
    ("wrap", "logits", "read"),
    [
        (lambda z: Output(z, z), "logits", lambda out: out.logits),
        (lambda z: (z * 2, z), 1, lambda out: out[1]),
        (lambda z: {"logits": z}, "logits", lambda out: out["logits"]),
        (lambda z: [{"z": z}], lambda out: out[0]["z"], lambda out: out[0]["z"]),
    ],
)
def test_logits_inside_of_an_output(wrap, logits, read, is_given):
    model, x, y = Wrapped(wrap).eval(), uniform(5, 6), torch.arange(5) % 4

    def attack(loss=F.cross_entropy):
        descent(model, x, y, lambda out, y: loss(read(out), y), steps=2)

    clean = x if is_given else None
    trace = diagnosed(model, y, attack, x=clean, logits=logits)
    assert trace.diagnosis() == []
    assert set(trace.steps()["loss"]) == {"ce"}
    own = trace.errors()[lambda e: e["is_own"]]
    assert own["is_rerun_equal"].all()
    assert (own["delta"] < 1e-4).all()
    with pytest.raises(ValueError, match="logits="), fperr.record(model, clean, y):
        attack()


@pytest.mark.parametrize(
    ("logits", "match"),
    [
        ("scores", "has no tensor at logits=.scores.: say where .* logits=.logits."),
        (lambda out: out.logits * 2, "it computes a new one"),
        (lambda _: "none", "must return logits"),
    ],
)
def test_logits_that_are_not_there(logits, match):
    model, x, y = Wrapped(lambda z: Output(z, z)).eval(), uniform(5, 6), torch.arange(5) % 4
    with (
        pytest.raises(ValueError, match=match),
        fperr.record(model, None, y, logits=logits, samples=0),
    ):
        descent(model, x, y, lambda out, y: F.cross_entropy(out.logits, y), steps=1)


def test_models_of_integers():
    model = nn.Sequential(nn.Embedding(5, 6), nn.Flatten(), nn.Linear(18, 4)).eval()
    y = torch.arange(4)
    with (
        pytest.warns(UserWarning, match=r"the model on integers \(1 of them\)"),
        fperr.record(model, None, y, samples=0),
    ):
        model(torch.zeros(4, 3, dtype=torch.int64))
    behind, x = model[1:].eval(), normal(4, 3, 6)
    with fperr.record(behind, None, y, samples=0) as trace:  # the remedy
        descent(behind, x, y, steps=1)
    assert trace.gradients == 1


def test_what_a_killed_attack_left_is_diagnosed_too(tmp_path):
    model, x, y = tiny_mlp(), uniform(5, 6), torch.arange(5) % 4

    def attack():
        model[2].train()
        descent(model, x, y, lambda z, y: -F.cross_entropy(z, y), steps=2)

    trace = diagnosed(model, y, attack, out=tmp_path / "trace")
    path = trace.folder / "trace.json"
    about = trace.about
    assert len(about.pop("diagnosis")) == 2
    said = trace.diagnosis()
    killed = {**about, "is_complete": False, "seal": storage.SEAL}
    storage.write(path, storage.sealed(json.dumps(killed).encode()))
    assert "diagnosis" not in trace.about
    assert trace.diagnosis() == said
