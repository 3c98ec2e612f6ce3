"""Public functions neither feel nor change what their caller has set."""

import copy
import inspect
import logging
import random
import sys
import threading
import warnings
from contextlib import contextmanager, nullcontext
from types import ModuleType

import flint
import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import backends, nn

import fperr
from fperr import attacks, bounds, exact, validation
from fperr.caller_state import SWITCH_LOCK, in_neutral_state, neutral_outside_yield
from fperr.errors import InexactProductError, ModeError, ModelError
from tests.conftest import slow_except
from tests.makers.caller_states import (
    EQUAL,
    HEAVY,
    LIGHT,
    NAMED,
    OF_MODELS,
    PURE,
    TWINS,
    belongings,
    comparable,
    digits,
    drawings,
    everywhere,
    network,
    spent,
)


@pytest.fixture(scope="module")
def drawn():
    return drawings(spent())


def results(doors):
    """Of each public function, where the caller has set nothing."""
    return {name: comparable(door(network(), *digits())) for name, door in doors.items()}


@pytest.fixture(scope="module")
def undisturbed():
    return results(LIGHT)


def differences(before, after):
    return [name for name in before if before[name] != after.get(name, "gone")]


def called(door, model, x, y):
    """What the door returns or raises, and what it has changed."""
    before = everywhere() | belongings(model, x, y)
    fault = result = None
    try:
        result = comparable(door(model, x, y))
    except Exception as raised:
        fault = raised
    changed = differences(before, everywhere() | belongings(model, x, y))
    return result, fault, changed


def walk(doors, state, expected):
    """What each door does to the state, or the state to it; nothing where all is well."""
    faults = {}
    for name, door in doors.items():
        model = network()
        with state():
            x, y = (t.clone() for t in digits())
            result, fault, changed = called(door, model, x, y)
        if changed or fault is not None or result != expected[name]:
            faults[name] = changed, fault, result == expected[name]
    return faults


@pytest.mark.parametrize(
    "state", slow_except([name for name in EQUAL if name not in TWINS], ["all at once"])
)
def test_no_state_of_the_caller_enters_a_result_or_is_changed(state, undisturbed):
    assert walk(LIGHT, EQUAL[state], undisturbed) == {}


@pytest.mark.slow
def test_nor_a_drawing(drawn):
    assert walk(drawn, EQUAL["all at once"], results(drawn)) == {}


@pytest.mark.slow
def test_nor_any_other_result(drawn):
    doors = drawn | LIGHT | HEAVY
    expected = results(doors)
    for name, state in EQUAL.items():
        chosen = doors if name in TWINS else drawn | HEAVY
        assert walk(chosen, state, expected) == {}


@pytest.mark.parametrize("state", NAMED)
def test_a_mode_that_may_change_numbers_is_named(state, drawn):
    enter, name = NAMED[state]
    for door in [d for n, d in (drawn | LIGHT | HEAVY).items() if n not in PURE]:
        model, (x, y) = network(), digits()
        with enter():
            _, fault, changed = called(door, model, x, y)
        assert changed == []
        assert isinstance(fault, ModeError)
        with pytest.raises(ModeError, match=name):
            raise fault


def test_transforms_of_functions_are_named(drawn):
    doors = [d for n, d in (drawn | LIGHT | HEAVY).items() if n not in PURE]
    model, (given, y) = network(), digits()

    def inside(_):
        for door in doors:
            with pytest.raises(ModeError, match=r"a transform of torch.func, such as vmap or grad"):
                door(model, given, y)
        return torch.zeros(())

    torch.func.vmap(inside)(torch.zeros(1))
    torch.func.grad(lambda x: inside(x) + x.sum())(torch.zeros(1))


def test_flushed_subnormal_numbers_are_named_or_make_no_difference(undisturbed):
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormal numbers")
    try:
        for name, door in LIGHT.items():
            result, fault, changed = called(door, network(), *digits())
            assert changed == []
            if fault is None:
                assert result == undisturbed[name]
            else:
                assert isinstance(fault, ValueError | InexactProductError)
                assert "torch.set_flush_denormal" in str(fault)
    finally:
        torch.set_flush_denormal(False)


# After an error


class Fuse(nn.Module):
    """Draws random numbers, which changes nothing here, and fails from a call on."""

    def __init__(self, calls: int):
        super().__init__()
        self.calls = calls

    def forward(self, x):
        self.calls -= 1
        torch.rand(1), np.random.rand(), random.random()
        if self.calls <= 0:
            raise RuntimeError("the fuse has blown")
        return x


@pytest.mark.parametrize("state", ["nothing", "all at once"])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_all_is_as_before_after_a_model_has_failed(calls, state):
    for name in OF_MODELS:
        model, (x, y) = nn.Sequential(*network(), Fuse(calls)).eval(), digits()
        with EQUAL.get(state, nullcontext)():
            before = everywhere() | belongings(model, x, y)
            with pytest.raises(Exception, match="the fuse has blown"):
                LIGHT[name](model, x, y)
            after = everywhere() | belongings(model, x, y)
        assert differences(before, after) == []


@pytest.mark.parametrize("state", ["nothing", "all at once"])
def test_all_is_as_before_after_a_bad_argument(state):
    bad = dict.fromkeys(("measure", "record", "check", "logit_gradient"), "labels")
    bad |= dict.fromkeys((n for n in OF_MODELS if n.startswith("attack")), "labels")
    bad |= dict.fromkeys(("gradient by balls", "gradient by words", "capture"), "shape")
    for name, kind in bad.items():
        model = network()
        with EQUAL.get(state, nullcontext)():
            x, y = (t.clone() for t in digits())
            wrong = (x, y + 90) if kind == "labels" else (x[..., :3].clone(), y)
            _, fault, changed = called(LIGHT[name], model, *wrong)
        assert isinstance(fault, Exception), name
        assert not isinstance(fault, AttributeError), name
        assert changed == [], name


# What belongs to the caller


def test_what_belongs_to_the_caller_is_left_alone(undisturbed):
    for name, door in LIGHT.items():
        model, (x, y) = network(), digits()
        x.requires_grad_().grad = torch.ones_like(x)
        model[1].weight.requires_grad_(False)
        model[3].weight.grad = torch.full_like(model[3].weight, 3.0)
        model.register_forward_hook(lambda *_: None)
        x.register_hook(lambda g: g)
        result, fault, changed = called(door, model, x, y)
        assert fault is None, name
        assert changed == [], name
        assert result == undisturbed[name]


@pytest.mark.slow
def test_inputs_and_weights_that_change_between_two_calls_count(undisturbed):
    for name in (*OF_MODELS, "check", "logit_gradient", "paper", "backward_units"):
        model, (x, y) = network(3), digits()
        x.mul_(0.5)
        first = comparable(LIGHT[name](model, x, y))
        x.copy_(digits()[0])
        with torch.no_grad():
            for own, other in zip(model.parameters(), network().parameters(), strict=True):
                own.copy_(other)
        assert comparable(LIGHT[name](model, x, y)) == undisturbed[name]
        assert first != undisturbed[name]  # so it would have been seen


def test_clean_inputs_of_a_recording_may_change_inside():
    def trace(*, changed):
        model, (x, y) = network(), digits()
        with fperr.record(model, x, y, samples=0) as found:
            leaf = x.flip(0).clone().requires_grad_()
            if changed:
                x.copy_(x.flip(0))
            torch.autograd.grad(model(leaf).logsumexp(1).sum(), leaf)
        return comparable(found.steps(["step", "sample", "label_margin"]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the loss is none of fperr's
        assert trace(changed=True) == trace(changed=False)


@pytest.mark.parametrize(
    "state",
    [n for n in EQUAL if "default" in n or n in ("anomalies", "generators", "flint 4 bits")],
)
def test_a_recorded_attack_runs_in_its_own_state_and_its_tables_are_the_same(state):
    def tables(enter):
        model, (x, y) = network(), digits()
        options = {"losses": ("ce",), "formats": ("float16",), "every": 1, "samples": 1}
        with enter():
            with fperr.record(model, x, y, **options) as trace:
                before = everywhere()
                for _ in range(2):
                    leaf = x.clone().requires_grad_()
                    loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
                    torch.autograd.grad(loss, leaf)
                assert differences(before, everywhere()) == []
            assert differences(before, everywhere()) == []
        assert len(trace.errors()) == 4
        return comparable([trace.steps(), trace.errors(), trace.points()])

    assert tables(EQUAL[state]) == tables(nullcontext)


# Models


def made(under=torch.inference_mode):
    with under():
        return copy.deepcopy(network())


@pytest.mark.parametrize("name", OF_MODELS)
def test_weights_of_inference_mode_are_named_and_the_remedy_helps(name, undisturbed):
    model, (x, y) = made(), digits()
    assert model[1].weight.is_inference()
    with pytest.raises(ModeError, match=r"1.weight made under torch.inference_mode") as raised:
        LIGHT[name](model, x, y)
    assert "model = copy.deepcopy(model)" in str(raised.value)
    with torch.inference_mode():  # calls may come from there, too
        pass
    model = copy.deepcopy(model)
    assert comparable(LIGHT[name](model, x, y)) == undisturbed[name]


class Shifted(nn.Module):
    """Adds a constant that it makes in its forward."""

    def __init__(self, **options):
        super().__init__()
        self.network, self.options = network().double(), options
        self.training = False

    def forward(self, x):
        return self.network(x) + torch.full((10,), 0.1, **self.options)


@pytest.mark.parametrize("name", [n for n in OF_MODELS if not n.startswith("gradient")])
def test_a_model_that_depends_on_the_default_dtype_is_named(name):
    x, y = digits()
    x = x.double()
    with EQUAL["default float64"]():
        with pytest.raises(
            ModeError, match=r"gives other numbers .* set torch.float64: name dtype="
        ):
            LIGHT[name](Shifted(), x, y)
        LIGHT[name](Shifted(dtype=torch.float64), x, y)  # as it says


def test_a_model_that_depends_on_the_default_device_is_named():
    class OnlyThere(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.training = network(), False

        def forward(self, x):
            if torch.empty(1).device.type == "cpu":
                raise RuntimeError("two devices")
            return self.network(x)

    x, y = digits()
    with torch.device("meta"), pytest.raises(ModeError, match=r"fails under .* on meta: name"):
        fperr.attack(OnlyThere(), x, y, radius=0.1)
    with pytest.raises(ModelError, match="two devices"):  # it is the model's own fault here
        exact.gradient.__wrapped__(OnlyThere(), x, torch.ones(2, 10))


# Threads


@pytest.mark.slow
def test_frames_of_two_threads_are_those_of_one_after_the_other():
    x, y = digits()
    models = [network(1), network(2)]
    formats = {"losses": ("ce", "mifpe"), "formats": ("float16", "float32")}

    def work(model):
        return [
            comparable(fperr.measure(model, x, y, engine="ball", progress=False, **formats)),
            comparable(exact.gradient(model, x, torch.ones(2, 10), engine="double_word")),
            comparable(fperr.attack(model, x, y, radius=0.1, steps=5)),
        ]

    serial = [work(model) for model in models]
    before = everywhere() | belongings(models[0], x) | belongings(models[1], y)
    results, interval = {}, sys.getswitchinterval()

    def run(i, model):
        results.setdefault(i, []).append(work(model))

    try:
        sys.setswitchinterval(1e-6)
        jobs = [(i, m) for i, m in enumerate(models) for _ in range(2)]
        threads = [threading.Thread(target=run, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert results == {i: [expected] * 2 for i, expected in enumerate(serial)}
    after = everywhere() | belongings(models[0], x) | belongings(models[1], y)
    assert differences(before, after) == []


def is_free():
    """Whether another thread could take the lock."""
    free = []

    def take():
        free.append(SWITCH_LOCK.acquire(blocking=False))
        if free[0]:
            SWITCH_LOCK.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return free[0]


class Noting(nn.Module):
    """Notes in which state it is called."""

    def __init__(self):
        super().__init__()
        self.network, self.notes = network(), []

    def forward(self, x):
        self.notes.append((is_free(), torch.get_default_dtype()))
        return self.network(x)


def test_the_lock_is_held_in_a_function_and_not_in_a_recorded_attack():
    model, (x, y) = Noting().eval(), digits()
    fperr.attack(model, x, y, radius=0.1, steps=1)
    assert set(model.notes) == {(False, torch.float32)}
    model.notes.clear()
    with (
        EQUAL["default float64"](),
        fperr.record(model, x, y, losses=("ce",), formats=("float16",), samples=1),
    ):
        assert is_free()
        model.notes.clear()
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        assert model.notes == [(True, torch.float64)]  # the attack's own call, in its own state
        torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), leaf)
        model.notes.clear()
        model(leaf)
    assert is_free()


def test_an_error_in_a_recorded_attack_is_the_attacks_own():
    model, (x, y) = network(), digits()
    before = everywhere() | belongings(model, x, y)

    def attack():
        with fperr.record(model, x, y, samples=0):
            model(x)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        attack()
    assert differences(before, everywhere() | belongings(model, x, y)) == []


def test_a_mode_left_open_in_a_recorded_attack_is_named_and_hooks_are_removed():
    model, (x, y) = network(), digits()
    before = belongings(model)
    opened = torch.autograd.graph.save_on_cpu()
    recording = fperr.record(model, x, y, samples=0)
    recording.__enter__()
    opened.__enter__()
    with pytest.raises(ModeError, match="save_on_cpu"):
        recording.__exit__(None, None, None)
    opened.__exit__(None, None, None)
    assert differences(before, belongings(model)) == []


def test_a_wrapped_generator_hands_on_what_is_thrown():
    seen = []

    @contextmanager
    @neutral_outside_yield
    def around():
        seen.append(torch.get_default_dtype())
        try:
            yield 5
        except KeyError as fault:
            seen.append(fault.args[0])
            raise ValueError("another") from fault
        finally:
            seen.append(torch.get_default_dtype())

    with EQUAL["default float64"](), around() as value:
        assert (value, torch.get_default_dtype()) == (5, torch.float64)
    assert seen == [torch.float32, torch.float32]
    with pytest.raises(ValueError, match="another"), around():
        raise KeyError("thrown")
    assert seen[2:] == [torch.float32, "thrown", torch.float32]


# Signatures


def public(module: ModuleType):
    named = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in named.items() if inspect.isfunction(value)}


def test_every_public_function_is_walked_over_and_keeps_its_signature():
    walked = LIGHT.keys() | HEAVY.keys()
    for module in (fperr, attacks, bounds, exact, validation):
        for name, function in public(module).items():
            assert any(name in door for door in walked), name
            is_pure = name in (*PURE, "log2_delta_sup_input")
            assert hasattr(function, "__wrapped__") != is_pure, name
    parameters = inspect.signature(fperr.attack).parameters
    assert parameters["loss"].default == "tmifpe"
    assert list(parameters)[:3] == ["model", "x", "y"]
    assert fperr.measure.__doc__.startswith("Measure")
    assert fperr.attack.__module__ == "fperr.attacks.entry"


# The walk itself


def leaks():
    """Functions that leave something behind, by what the walk must name."""

    def change(setting):
        return lambda m, x, y: setting(m, x)

    return {
        "default dtype": change(lambda m, x: torch.set_default_dtype(torch.float64)),
        "numpy generator": change(lambda m, x: np.random.rand()),
        "torch generator": change(lambda m, x: torch.rand(1)),
        "random": change(lambda m, x: random.random()),
        "gradients": change(lambda m, x: torch.set_grad_enabled(False)),
        "anomalies": change(lambda m, x: torch.autograd.set_detect_anomaly(True)),
        "flint": change(lambda m, x: setattr(flint.ctx, "prec", 60)),
        "mha": change(lambda m, x: backends.mha.set_fastpath_enabled(False)),
        "attention flash": change(lambda m, x: backends.cuda.enable_flash_sdp(False)),
        "cudnn.deterministic": change(lambda m, x: setattr(backends.cudnn, "deterministic", True)),
        "numpy errors": change(lambda m, x: np.seterr(over="raise")),
        "matplotlib": change(lambda m, x: mpl.rcParams.update({"font.size": 3.0})),
        "warnings": change(lambda m, x: warnings.simplefilter("ignore")),
        "logging": change(lambda m, x: logging.root.setLevel(1)),
        "threads": change(lambda m, x: torch.set_num_threads(torch.get_num_threads() + 1)),
        "autocast cpu": change(lambda m, x: torch.set_autocast_enabled("cpu", True)),
        "deterministic": change(lambda m, x: torch.use_deterministic_algorithms(True)),
        "default device": change(lambda m, x: torch.set_default_device("meta")),
        "tensor 1.weight": change(lambda m, x: m[1].weight.requires_grad_(False)),
        "tensor 3.bias": change(lambda m, x: m(x).sum().backward()),
        "tensor 0": change(lambda m, x: x.add_(1)),
        "": change(lambda m, x: m.register_forward_hook(print)),
        "2": change(lambda m, x: m[2].train()),
    }


@pytest.mark.parametrize("name", leaks())
def test_the_walk_notices_what_is_left_behind(name):
    before = everywhere()
    try:
        _, fault, changed = called(leaks()[name], network(), *digits())
        assert fault is None
        assert ("function modes" if name == "default device" else name) in changed
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before["default dtype"])
        random.setstate(before["random"])
        torch.set_grad_enabled(True)
        torch.autograd.set_detect_anomaly(False)
        flint.ctx.prec = before["flint"][0]
        backends.mha.set_fastpath_enabled(before["mha"])
        backends.cuda.enable_flash_sdp(before["attention flash"])
        backends.cudnn.deterministic = before["cudnn.deterministic"]
        np.seterr(**before["numpy errors"])
        mpl.rcParams.update(before["matplotlib"])
        warnings.filters[:] = before["warnings"]
        logging.root.setLevel(before["logging"])
        torch.set_num_threads(before["threads"])
        torch.set_autocast_enabled("cpu", False)
        torch.use_deterministic_algorithms(False)


def bare(function):
    """A public function without what it wears."""
    return function.__wrapped__


BARE = {
    "no_grad": lambda m, x, y: bare(bounds.check)(m(x), y),
    "inference_mode": lambda m, x, y: bare(exact.gradient)(m, x, torch.ones(2, 10)).midpoint,
    "autocast bfloat16": lambda m, x, y: bare(fperr.attack)(m, x, y, radius=0.1, steps=3),
    "default float16": lambda m, x, y: (
        bare(bounds.log2_input_gradient)([2.0], [3.0]) and torch.tensor(0.1)
    ),
    "device meta": lambda m, x, y: bare(fperr.zoo.load)("fashion_standard")[0].weight,
    "anomalies": lambda m, x, y: bare(exact.gradient)(m, x, torch.ones(2, 10)).midpoint,
    "numpy raises": lambda m, x, y: np.float32(1e-45) * np.float32(0.5),
    "flint 4 bits": lambda m, x, y: (
        bare(fperr.measure)(
            m, x, y, engine="ball", losses=("ce",), formats=("float16",), progress=False
        ).frame
    ),
    "saved tensors": lambda m, x, y: bare(fperr.attack)(
        m, x, y, radius=0.1, steps=3, format="float64"
    ),
    "generators": lambda m, x, y: bare(type(PLOTS).stages)(PLOTS),
}
PLOTS = spent().report.plot


@pytest.mark.parametrize("state", BARE)
def test_without_what_they_wear_the_states_would_count(state):
    states = EQUAL | {name: enter for name, (enter, _) in NAMED.items()}
    model, (x, y) = network(), digits()
    expected = comparable(in_neutral_state(BARE[state])(model, x, y))
    with states[state]():
        result, fault, _ = called(BARE[state], model, x, y)
    assert fault is not None or result != expected
    door = in_neutral_state(BARE[state])
    if state in EQUAL:
        with EQUAL[state]():
            assert comparable(door(model, x, y)) == expected
