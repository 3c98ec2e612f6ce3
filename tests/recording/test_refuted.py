"""What a hostile reader refuted of the recorder: penalties in other dtypes, and threads."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fperr
from fperr import data, zoo
from fperr.recording.compared_rows import Rerun

IMAGES = data.fashion_mnist_1000()
X, Y = IMAGES.x[:4], IMAGES.y[:4]
QUIET = {"every": 1, "samples": 2, "losses": (), "formats": ()}


def ascend(model, x, *, steps=2, penalty=0.0, autocast=None, y=Y):
    """Plain sign ascent of cross-entropy, less a total variation that is no part of the network."""
    for _ in range(steps):
        leaf = x.detach().clone().requires_grad_()
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            loss = F.cross_entropy(model(leaf), y, reduction="sum")
        loss = loss - penalty * (leaf[..., 1:] - leaf[..., :-1]).abs().sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        x = (x + 0.02 * gradient.sign().to(x.dtype)).clamp(0, 1)
    return x


def own_rows(run):
    model = zoo.load("fashion_standard").eval()
    with fperr.record(model, X, Y, **QUIET) as trace:
        run(model)
    errors = trace.errors()
    return errors[errors["is_own"]], trace


RUNS = {
    "float32": lambda model, penalty: ascend(model, X, penalty=penalty),
    "autocast": lambda model, penalty: ascend(model, X, penalty=penalty, autocast=torch.bfloat16),
    "a copy in float64": lambda model, penalty: ascend(
        copy.deepcopy(model).double(), X.double(), penalty=penalty, steps=1
    ),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_penalty_is_no_error_in_whatever_dtype_the_attack_runs(kind):
    with pytest.warns(UserWarning, match="more than the network is in dL/dx"):
        rows, _ = own_rows(lambda model: RUNS[kind](model, 0.3))
    assert rows["delta"].isna().all()
    assert rows["relative_difference"].notna().all()
    plain, trace = own_rows(lambda model: RUNS[kind](model, 0.0))
    assert plain["is_rerun_equal"].all()
    assert plain["relative_difference"].isna().all()
    assert plain["delta"].notna().all()
    assert not trace.diagnosis()


def test_a_single_image_is_recorded():
    """It has no nearest other image to be confused with."""
    model = zoo.load("fashion_standard").eval()
    with fperr.record(model, X[:1], Y[:1], **QUIET) as trace:
        ascend(model, X[:1], y=Y[:1])
    assert trace.steps()["sample"].tolist() == [0, 0]


def recorded_within(model):
    with fperr.repaired("mifpe"), fperr.record(model, X, Y, **QUIET) as trace:
        points = ascend(model, X)
    return trace, points


def recorded_around(model):
    with fperr.record(model, X, Y, **QUIET) as trace, fperr.repaired("mifpe"):
        points = ascend(model, X)
    return trace, points


@pytest.mark.parametrize("recorded", [recorded_within, recorded_around])
def test_a_repaired_attack_is_recorded(recorded):
    """The recorder sees the gradient that the attack follows, and computes its own without it."""
    model = zoo.load("fashion_standard").eval()
    trace, points = recorded(model)
    assert set(trace.steps()["loss"]) == {"mifpe"}
    own = trace.errors()
    assert (own[own["is_own"]]["delta"] < 1e-4).all()
    with fperr.repaired("mifpe"):
        assert torch.equal(ascend(model, X), points)
    with (
        pytest.warns(fperr.errors.RepairWarning, match="saw no call"),
        fperr.repaired("mifpe"),
        pytest.raises(fperr.errors.ModeError, match=r"got repaired \(a TorchFunctionMode\)"),
    ):
        fperr.attack(model, X, Y, radius=0.1, steps=1)  # it has a loss of its own


def test_points_that_the_models_dtype_cannot_hold_have_no_delta():
    """A copy in float64 moves to numbers between those of float32."""

    def attack(model):
        ascend(copy.deepcopy(model).double(), X.double())

    with pytest.warns(UserWarning, match="is no number of the model's dtype"):
        rows, trace = own_rows(attack)
    first, second = (rows[rows["step"] == step] for step in (0, 1))
    assert first["delta"].notna().all()
    assert second["delta"].isna().all()
    assert second["relative_difference"].notna().all()
    assert second["reason"].str.contains("no number of the model's dtype").all()
    wide = zoo.load("fashion_standard").double().eval()  # the remedy
    with fperr.record(wide, X.double(), Y, **QUIET) as trace:
        ascend(wide, X.double())
    errors = trace.errors()
    assert errors[errors["is_own"]]["delta"].notna().all()


def test_what_cannot_be_run_again_has_no_delta(monkeypatch):
    def attack(model):
        narrow = copy.deepcopy(model).to(torch.bfloat16)
        monkeypatch.setattr(Rerun, "_in_dtype", lambda *_: nn.Identity())
        ascend(narrow, X.to(torch.bfloat16), steps=1)

    with pytest.warns(UserWarning, match="could not be run again"):
        rows, _ = own_rows(attack)
    assert rows["delta"].isna().all()
    assert rows["reason"].str.contains("could not be run again").all()


def test_each_thread_records_its_own_passes():
    model = zoo.load("fashion_standard").eval()
    begun, ended = threading.Event(), threading.Event()
    seen: list[torch.Tensor] = []

    def elsewhere():
        begun.wait(60)
        seen.append(ascend(model, X, steps=5))
        ended.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with fperr.record(model, X, Y, **{**QUIET, "samples": 0}) as trace:
        begun.set()
        assert ended.wait(60)
        ascend(model, X, steps=2)
    thread.join()
    assert trace.gradients == 2
    assert torch.equal(seen[0], ascend(model, X, steps=5))


def test_two_threads_record_one_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    traces: dict[int, fperr.Trace] = {}
    together = threading.Barrier(2)

    def recorded(steps):
        with fperr.record(model, X, Y, **{**QUIET, "samples": 0}) as trace:
            together.wait(60)
            ascend(model, X, steps=steps)
            together.wait(60)
        traces[steps] = trace

    threads = [threading.Thread(target=recorded, args=(steps,)) for steps in (20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert {steps: trace.gradients for steps, trace in traces.items()} == {20: 20, 30: 30}


def per_sample(z, y, _):
    return F.cross_entropy(z, y, reduction="none")


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda z, y, t: per_sample(z, y, t) / len(z), "another value or gradient alone"),
        (lambda z, y, t: per_sample(z, y, t) * z.detach().amax(), "another value"),
        (lambda z, y, t: per_sample(z - z.mean(0), y, t), "another value"),
        (lambda z, y, t: per_sample(z, y, t) + z.sum() - z.detach().sum(), "or gradient alone"),
        (lambda z, y, t: per_sample(z.div_(3), y, t), "which it must not change"),
        (lambda z, y, t: per_sample(z, y, t) * torch.rand(()), "it is random"),
        (lambda z, y: per_sample(z, y, None), "It gets three arguments"),
        (nn.CrossEntropyLoss(reduction="none"), "It gets three arguments"),
        (lambda z, _, t: per_sample(z, t, None), "targets is None where none are given"),
        (lambda z, y, t: per_sample(z, y, t) * (1 / 0), "fails with ZeroDivisionError"),
    ],
)
def test_a_given_loss_that_is_no_function_of_its_row_is_refused(loss, text):
    model = zoo.load("fashion_standard").eval()
    with (
        pytest.raises(ValueError, match=text),
        fperr.record(model, X, Y, loss=loss, **QUIET),
    ):
        ascend(model, X)
    with fperr.record(model, X, Y, loss=per_sample, **QUIET) as trace:  # the remedy
        ascend(model, X)
    rows = trace.errors()
    assert rows[rows["is_own"]]["delta"].notna().all()


def test_a_piece_of_another_trace_is_named(tmp_path):
    model = zoo.load("fashion_standard").eval()
    for name, steps in (("a", 1), ("b", 2)):
        with fperr.record(model, X, Y, out=tmp_path / name, **QUIET):
            ascend(model, X, steps=steps)
    mine, foreign = (tmp_path / name / "steps" / "000000.parquet" for name in "ab")
    assert fperr.Trace(tmp_path / "a").gradients == 1
    mine.write_bytes(foreign.read_bytes())
    with pytest.raises(ValueError, match=r"000000\.parquet is damaged, or of another trace"):
        fperr.Trace(tmp_path / "a").steps()


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.network, self.function = zoo.load("fashion_standard"), function

    def forward(self, x):
        return self.function(self.network, x)


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda net, x: net(x) + 0.01 * torch.randn(len(x), 10), "depends on randomness"),
        (lambda net, x: net(x - x.mean(0)), "depends on the batch"),
        (lambda net, x: net(x.clamp_(0, 1)), "in place"),
    ],
)
def test_models_that_are_no_function_of_one_sample_are_refused_without_comparisons_too(
    function, text, samples
):
    model = Of(function).eval()
    with (
        pytest.raises(fperr.FperrError, match=text),
        fperr.record(model, X, Y, **{**QUIET, "samples": samples}),
    ):
        pass


@pytest.mark.parametrize("x", [X, None])
def test_a_function_that_does_not_find_the_logits_is_said_to(x):
    model = Of(lambda net, x_: {"logits": net(x_)}).eval()
    text = r"the function logits= fails .*KeyError: 'logit': say where .*logits='logits'"
    for door in (
        lambda where: fperr.attack(model, X, Y, radius=0.1, steps=1, logits=where),
        lambda where: recorded(model, x, where),
    ):
        with pytest.raises(ValueError, match=text):
            door(lambda output: output["logit"])
        door("logits")  # the remedy


def recorded(model, x, where):
    with fperr.record(model, x, Y, logits=where, **{**QUIET, "samples": 0}):
        leaf = X.clone().requires_grad_()
        F.cross_entropy(model(leaf)["logits"], Y).backward()


DOORS = {
    "measure": lambda model: fperr.measure(
        model, X, Y, losses=["ce"], formats=["float32"], engine="double_word", progress=False
    ),
    "exact": lambda model: fperr.exact.gradient(model, X, torch.ones(4, 10), engine="double_word"),
    "layers": lambda model: fperr.trace_layers(model, X[:1], Y[:1], progress=False),
    "exact attack": lambda model: fperr.attack(
        model, X, Y, radius=0.05, steps=1, loss="ce", format="exact"
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_fperr_asks_the_model_is_no_step_of_a_recorded_attack(door):
    model = zoo.load("fashion_standard").eval()
    with fperr.record(model, X, Y, **QUIET) as trace:
        ascend(model, X, steps=1)
        DOORS[door](model)
        ascend(model, X, steps=1)
    assert trace.gradients == 2


def test_an_attack_of_ours_is_compared_at_its_first_step():
    """Its checks of the model are no forward passes of it."""
    model = zoo.load("fashion_standard").eval()
    with fperr.record(model, X, Y, **{**QUIET, "every": 10}) as trace:
        fperr.attack(model, X, Y, radius=0.05, steps=5, loss="ce", freeze=False)
    assert trace.gradients == 5
    assert list(trace.steps(["forward"])["forward"].unique()) == [0, 1, 2, 3, 4]
    errors = trace.errors()
    assert set(errors[errors["is_own"]]["step"]) == {0}


def test_a_transform_of_the_users_is_still_refused():
    model = zoo.load("fashion_standard").eval()
    with (
        pytest.raises(ValueError, match="transforms cannot be recorded"),
        fperr.record(model, X, Y, **{**QUIET, "samples": 0}),
    ):
        torch.func.grad(lambda x: model(x).sum())(X)
