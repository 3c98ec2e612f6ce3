"""Every door on a device: the CPU's results, and waits that do not grow with steps or samples.

On the pretend device the results are the CPU's bit for bit; on a card kernels sum otherwise.
"""

import gc
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import fperr
from fperr import bounds, exact, losses
from fperr.attacks import attack_in_batches
from fperr.figures import (
    FIGURES,
    Study,
    Subject,
    accuracy,
    attacks,
    boost,
    gpu,
    sweep,
    table1,
    tstar,
)
from fperr.formats import EMULATED
from fperr.vocabulary import ENGINES
from tests.conftest import seeded
from tests.makers.libraries import APGDAttack, pgd_linf, torchattacks
from tests.makers.networks import NETWORKS, SIDE, build
from tests.pretend_device import COUNTS, counted

CLASSES = 5


def network() -> nn.Module:
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, CLASSES)
    return seeded(nn.Sequential(*layers))


def images(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 8, 8, generator=generator)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def both(door: Callable[..., Any], device: torch.device) -> tuple[Any, Any]:
    """The door's results on the device and on the CPU."""
    x, y = images()
    given = [t.clone() for t in (x, y)]
    there = x.to(device), y.to(device)
    on_device = door(network().to(device), *there)
    for before, after in zip(given, there, strict=True):
        assert torch.equal(before, after.cpu())  # the caller's tensors are as they were
    return on_device, door(network(), x, y)


def assert_same(found: Any, expected: Any, device: torch.device) -> None:
    """Bit for bit on the pretend device; on a card, whose kernels sum otherwise, alike in kind."""
    if device.type != "cuda":
        if isinstance(found, pd.DataFrame):
            pd.testing.assert_frame_equal(found, expected)
        else:
            assert torch.equal(found.cpu(), expected.cpu())
    elif isinstance(found, pd.DataFrame):
        assert list(found.columns) == list(expected.columns)
        assert len(found) == len(expected)
    else:
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert bool(found.isfinite().all()) == bool(expected.isfinite().all())


@pytest.mark.parametrize("engine", [None, *ENGINES])
def test_measure(engine, device):
    options = {} if engine is None else {"engine": engine}

    def door(model, x, y):
        return fperr.measure(
            model, x, y, losses=["ce", "tmifpe"], formats=["float16", "float32"], progress=False,
            **options,
        ).frame  # fmt: skip

    found, expected = both(door, device)
    assert found["delta"].notna().all()
    assert_same(found, expected, device)


@pytest.mark.parametrize("loss", ["ce", "stable_ce", "mifpe", "tmifpe", "cw", "dlr", "gama"])
@pytest.mark.parametrize("method", ["fgsm", "pgd", "apgd"])
def test_attack(loss, method, device):
    steps = {} if method == "fgsm" else {"steps": 3}

    def door(model, x, y):
        return fperr.attack(model, x, y, radius=0.1, loss=loss, method=method, **steps)

    found, expected = both(door, device)
    for field in fields(found):
        if isinstance(getattr(found, field.name), torch.Tensor):
            assert_same(getattr(found, field.name), getattr(expected, field.name), device)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attack_on_exact_gradients(norm, device):
    def door(model, x, y):
        return fperr.attack(model, x, y, radius=0.1, norm=norm, steps=2, format="exact").adversarial

    assert_same(*both(door, device), device)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_exact_gradient(engine, device):
    def door(model, x, y):
        v = torch.nn.functional.one_hot(y, CLASSES).double() - 0.2
        return exact.gradient(model, x, v, **({} if engine == "auto" else {"engine": engine}))

    found, expected = both(door, device)
    ours, theirs = found.to_torch(), expected.to_torch()
    assert_same(ours, theirs, device)
    # on any device, by what both claim of their errors, and the rounding to float64
    claimed = ([2.0**e for e in result.log2_errors] for result in (found, expected))
    for row, other, error, other_error in zip(ours.cpu(), theirs.cpu(), *claimed, strict=True):
        allowed = (error + other_error + 2.0**-52) * other.norm()
        assert float((row - other).norm()) <= allowed


def test_attribute(device):
    def door(model, x, y):
        return fperr.attribute(
            model, x, y, radius=0.1, steps=2, starts=1, exact="all", why=True, search="restarts",
            progress=False,
        ).frame  # fmt: skip

    assert_same(*both(door, device), device)


def test_trace_layers(device):
    assert_same(*both(lambda *given: fperr.trace_layers(*given).frame, device), device)


def test_bounds(device):
    def door(model, x, y):
        return bounds.check(model(x), y, "float32")

    assert_same(*both(door, device), device)


def test_record(device):
    def door(model, x, y):
        with fperr.record(model, x, y) as trace:
            fperr.attack(model, x, y, radius=0.1, steps=2, loss="mifpe")
        errors = trace.errors()
        assert len(errors)
        # an estimate from a run in float32, whose products the CPU alone sums in pieces
        return errors.drop(columns="log2_reference_error")

    assert_same(*both(door, device), device)


def test_repaired(device):
    def door(model, x, y):
        leaf = x.clone().requires_grad_()
        with fperr.repaired("mifpe"):
            torch.nn.functional.cross_entropy(model(leaf), y).backward()
        return leaf.grad

    assert_same(*both(door, device), device)


def synchronisations(door: Callable[[], Any]) -> int:
    with counted() as counts:
        door()
    return sum(counts.synchronisations.values())


@pytest.fixture
def pretend(device):
    if device.type == "cuda":
        pytest.skip("the pretend device counts")
    return device


@pytest.mark.parametrize("loss", ["ce", "mifpe", "tmifpe", "dlr", "gama"])
@pytest.mark.parametrize("method", ["pgd", "apgd"])
def test_no_step_of_an_attack_waits(loss, method, pretend):
    x, y = images()
    model = network().to(pretend)

    def attacked(steps, **options):
        fperr.attack(
            model, x.to(pretend), y.to(pretend), radius=0.1, loss=loss, method=method, steps=steps,
            **options,
        )  # fmt: skip

    def reading(number, points, logits, gradient):
        float(logits.sum())

    few = synchronisations(lambda: attacked(3))
    assert few == synchronisations(lambda: attacked(9))
    # negative control: a step that reads a number is seen
    assert synchronisations(lambda: attacked(9, on_step=reading)) >= few + 9


@pytest.mark.parametrize("engine", ["float64", "double_word"])
def test_waits_of_an_exact_gradient_do_not_grow_with_the_batch(engine, pretend):
    def waits(n):
        x, y = images(n)
        v = torch.nn.functional.one_hot(y, CLASSES).double() - 0.2
        model = network().to(pretend)
        return synchronisations(
            lambda: exact.gradient(model, x.to(pretend), v.to(pretend), engine=engine)
        )

    assert waits(2) == waits(7)


@pytest.mark.parametrize("name", ["cross_entropy", "mifpe", "tmifpe", "stable_ce", "cw", "dlr"])
def test_losses_do_not_wait(name, pretend):
    z = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(pretend).requires_grad_()
    y = torch.arange(4).to(pretend)
    assert synchronisations(lambda: getattr(losses, name)(z, y).backward()) == 0


def test_repaired_does_not_wait(pretend):
    x, y = (t.to(pretend) for t in images())
    leaf, model = x.requires_grad_(), network().to(pretend)

    def door():
        with fperr.repaired("mifpe"):
            torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), y), leaf)

    door()
    assert synchronisations(door) == 0


def test_nothing_stays_on_the_device(pretend):
    x, y = images()

    def held_after(door):
        door()
        gc.collect()  # exceptions and graphs hold tensors in cycles
        return COUNTS.bytes_held

    def door():
        model = network().to(pretend)
        fperr.measure(model, x.to(pretend), y.to(pretend), losses=["ce"], formats=["float32"])

    held = held_after(lambda: None)
    assert held_after(door) == held
    kept = []
    assert held_after(lambda: kept.append(x.to(pretend))) == held + x.nbytes  # negative control


def test_a_door_copies_to_the_device_that_it_is_given(pretend):
    x, y = images()
    model = network()
    there = fperr.attack(model, x, y, radius=0.1, steps=2, device=pretend)
    here = fperr.attack(model, x, y, radius=0.1, steps=2)
    assert there.adversarial.device == pretend
    assert torch.equal(there.adversarial.cpu(), here.adversarial)
    frame = fperr.measure(
        model, x, y, losses=["ce"], formats=["float32"], device=pretend, progress=False
    ).frame
    assert frame["delta"].notna().all()
    options = {"radius": 0.1, "steps": 1, "starts": 1, "exact": "none", "progress": False}
    assert len(fperr.attribute(model, x, y, device=pretend, **options).frame) == len(x)
    assert len(fperr.trace_layers(model, x[:1], device=pretend, progress=False).frame)
    assert next(model.parameters()).device.type == "cpu"  # the caller's stays where it is


@pytest.mark.slow
def test_two_devices_are_one_sentence(pretend):
    x, y = images()
    with pytest.raises(ValueError, match="the model is on cpu and x on pretend:0: give device='cp"):
        fperr.attack(network(), x.to(pretend), y, radius=0.1, steps=1)
    found = fperr.attack(network(), x.to(pretend), y, radius=0.1, steps=1, device="cpu")
    assert found.adversarial.device.type == "cpu"
    # labels and targets go where x is
    targets = (y + 1) % CLASSES
    moved = fperr.attack(network().to(pretend), x.to(pretend), y, targets=targets, radius=0.1)
    assert moved.success.device == pretend


def test_devices_that_do_not_do_are_refused_in_words():
    x, y = images()
    for device, text in {"mps": "has no float64", "nope": "or 'auto'", "meta": "nothing"}.items():
        with pytest.raises(ValueError, match=text):
            fperr.attack(network(), x, y, radius=0.1, steps=1, device=device)
    assert len(fperr.attack(network(), x, y, radius=0.1, steps=1, device="auto").success) == len(x)


def test_batches_are_halved_where_memory_does_not_do(pretend, tmp_path):
    x, y = images(32)
    options = {"radius": 0.1, "steps": 2, "loss": "mifpe"}
    model = network()
    whole = attack_in_batches(model, x, y, tmp_path / "cpu", **options)
    model, there = model.to(pretend), x.to(pretend)
    sizes = []

    def advance(result):
        sizes.append(len(result.success))

    with counted(most_bytes=60_000) as counts:
        with pytest.raises(torch.OutOfMemoryError):
            fperr.attack(model, there, y.to(pretend), **options)
        halves = attack_in_batches(
            model, there, y.to(pretend), tmp_path / "device", advance=advance, **options
        )
        assert counts.bytes_held <= counts.most_bytes
    assert sizes == [32]  # a batch is one file, in however many pieces it was computed
    pd.testing.assert_frame_equal(halves, whole)


@pytest.mark.slow
def test_exact_networks_are_halved_too(pretend):
    x, y = images(32)

    def measured(model, x, y):
        return fperr.measure(
            model, x, y, losses=["ce"], formats=["float32"], engine="double_word", progress=False
        ).frame

    expected, model = measured(network(), x, y), network().to(pretend)
    with counted(most_bytes=30_000_000):
        found = measured(model, x.to(pretend), y.to(pretend))
    pd.testing.assert_frame_equal(found, expected)


def test_a_sample_that_does_not_fit_says_so(pretend):
    x, y = images(2)
    model = network().to(pretend)
    with counted(most_bytes=1_000), pytest.raises(torch.OutOfMemoryError):
        fperr.measure(model, x.to(pretend), y.to(pretend), losses=["ce"], formats=["float32"])


def test_a_write_into_the_callers_tensor_is_noticed(pretend):
    """Negative control of `both`."""

    def writing(model, x, y):
        x.add_(1)
        return model(x)

    with pytest.raises(AssertionError):
        both(writing, pretend)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the graph for a batch of 2 differs from that for one sample")
@pytest.mark.parametrize(
    "name",
    [
        # its audit: under vmap `new_zeros` of a wrapper gives a CPU tensor
        pytest.param(name, marks=pytest.mark.xfail(raises=RuntimeError)) if name == "pointnet"
        else name
        for name in NETWORKS
    ],
)  # fmt: skip
def test_every_network_of_the_tests(name, pretend):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, SIDE, SIDE, generator=generator)
    y = torch.tensor([0, 1])

    def measured(device):
        model = build(name).to(device)
        return fperr.measure(
            model, x.to(device), y.to(device), losses=["mifpe"],
            formats=[
                "float16", "float32", "float32@cuda", "bfloat16@cuda", "autocast-float16@cuda",
            ],
            progress=False,
        ).frame  # fmt: skip

    # float32 beside float64 sums in another order on the CPU, and its estimate with it
    estimates = ["log2_reference_error"]
    found, expected = (measured(d).drop(columns=estimates) for d in (pretend, torch.device("cpu")))
    assert found["delta"].notna().all()
    assert_same(found, expected, pretend)


def test_every_emulated_arithmetic(pretend):
    """Layers of 16 and its multiples, so that float8 changes them."""
    x, y = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])

    def measured(device):
        layers = nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 16)
        model = seeded(nn.Sequential(*layers)).eval().to(device)
        return fperr.measure(
            model, x.to(device), y.to(device), losses=["ce", "mifpe"],
            formats=[fmt.name for fmt in EMULATED], batch_size=1, progress=False,
        ).frame  # fmt: skip

    estimates = ["log2_reference_error"]
    found, expected = (measured(d).drop(columns=estimates) for d in (pretend, torch.device("cpu")))
    assert found["delta"].notna().all()
    assert found.groupby(["loss", "sample"])["delta"].nunique().min() > 3  # they are not one
    assert_same(found, expected, pretend)


def by_torchattacks(model, x, y):
    attack = torchattacks.PGD(model, eps=0.1, steps=3, random_start=False)
    attack.device = x.device
    return attack(x, y)


def by_pyautoattack(model, x, y):
    return APGDAttack(
        model, n_iter=3, eps=0.1, norm="Linf", seed=0, device=x.device, loss="ce"
    ).perturb(x, y)


OTHERS = {
    "torchattacks": by_torchattacks,
    "adv_lib": lambda model, x, y: pgd_linf(model, x, y, ε=0.1, steps=3, random_init=False),
    "pyautoattack": by_pyautoattack,
}


@pytest.mark.slow
@pytest.mark.parametrize("attack", OTHERS.values(), ids=OTHERS)
def test_another_librarys_attack(attack, pretend):
    """Without random starts, which a Python backend cannot draw.

    adv_lib's APGD draws on the device. foolbox refuses the pretend device's tensors: eagerpy asks
    for the very class of PyTorch's. ART takes NumPy's arrays, and puts models on the CPU or CUDA.
    """
    x, y = images()

    def attacked(device):
        model = network().to(device)
        leaf, labels = x.to(device), y.to(device)
        with fperr.record(model, leaf, labels, losses=(), formats=()) as trace:
            points = attack(model, leaf, labels)
        return points, trace.steps()

    points, steps = attacked(pretend)
    expected, steps_on_cpu = attacked(torch.device("cpu"))
    assert points.device == pretend
    assert torch.equal(points.cpu(), expected)
    pd.testing.assert_frame_equal(steps, steps_on_cpu)


# without those of times and of no network, and AutoAttack, which draws on the device
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, r in FIGURES.items() if r.networks))
def test_a_figure(name, pretend, tmp_path, monkeypatch):
    for module in (attacks, accuracy, boost, gpu, sweep, tstar):
        monkeypatch.setattr(module, "STEPS", 2)
    for module in (gpu, table1):
        monkeypatch.setattr(module, "ARITHMETICS", ("float32", "float16@cuda"))
    monkeypatch.setattr(boost, "LIBRARY", "a_library_that_is_not_there")
    monkeypatch.setattr(sweep, "TEMPERATURES", (1.0,))

    def drawn(device):
        study = Study((Subject("fashion_saturated", 2, device),), tmp_path)
        frame = FIGURES[name].frame(study)
        # an estimate from a run in float32, whose products the CPU alone sums in pieces
        return frame.drop(columns="log2_reference_error", errors="ignore")

    with counted() as counts:
        found = drawn(pretend)
    assert counts.bytes_to_cpu  # it did not run on the CPU alone
    pd.testing.assert_frame_equal(found, drawn(torch.device("cpu")))
