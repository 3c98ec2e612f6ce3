"""What a hostile reader refuted of the recorder: penalties in other dtypes, and threads."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fperr
from fperr import data, zoo

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
    with fperr.record(model, Y, x=X, **QUIET) as trace:
        run(model)
    errors = trace.errors()
    return errors[errors["is_own"]], trace


RUNS = {
    "float32": lambda model, penalty: ascend(model, X, penalty=penalty),
    "autocast": lambda model, penalty: ascend(model, X, penalty=penalty, autocast=torch.bfloat16),
    "a copy in float64": lambda model, penalty: ascend(
        copy.deepcopy(model).double(), X.double(), penalty=penalty
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
    with fperr.record(model, Y, x=X, **{**QUIET, "samples": 0}) as trace:
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
        with fperr.record(model, Y, x=X, **{**QUIET, "samples": 0}) as trace:
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
        (lambda z, y, t: per_sample(z, y, t) / len(z), "another value alone than in its batch"),
        (lambda z, y, t: per_sample(z, y, t) * z.detach().amax(), "another value alone"),
        (lambda z, y, t: per_sample(z - z.mean(0), y, t), "another value alone"),
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
        fperr.record(model, Y, x=X, loss=loss, **QUIET),
    ):
        ascend(model, X)
    with fperr.record(model, Y, x=X, loss=per_sample, **QUIET) as trace:  # the remedy
        ascend(model, X)
    rows = trace.errors()
    assert rows[rows["is_own"]]["delta"].notna().all()


def test_a_piece_of_another_trace_is_named(tmp_path):
    model = zoo.load("fashion_standard").eval()
    for name, steps in (("a", 1), ("b", 2)):
        with fperr.record(model, Y, x=X, out=tmp_path / name, **QUIET):
            ascend(model, X, steps=steps)
    mine, foreign = (tmp_path / name / "steps" / "000000.parquet" for name in "ab")
    assert fperr.Trace(tmp_path / "a").gradients == 1
    mine.write_bytes(foreign.read_bytes())
    with pytest.raises(ValueError, match=r"000000\.parquet is damaged, or of another trace"):
        fperr.Trace(tmp_path / "a").steps()
