"""The run time of exact gradients, by engine and size of the network."""

import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fperr.exact import gradient
from fperr.figures.panels import panels
from fperr.figures.study import Study
from fperr.report.style import colours
from fperr.vocabulary import EngineName

_WIDTHS = (4, 8, 16, 32, 64)  # channels of a network of random weights
_Gradient = Literal["PyTorch"] | EngineName
_ENGINES: dict[_Gradient, tuple[int, str]] = {  # batch, what it is
    "PyTorch": (64, "float64, not exact"),
    "float64": (64, "38 bits, agreed"),
    "double_word": (16, "80 bits"),
    "ball": (1, "128 bits"),
    "mpmath": (1, "128 bits, checked at 256"),
}
_PATIENCE = 2.0  # seconds; after a longer batch, an engine's larger networks are extrapolated
# the losses whose colours the engines take
_COLOUR_KEYS = {
    "PyTorch": "cw",
    "float64": "stable_ce",
    "double_word": "tmifpe",
    "ball": "mifpe",
    "mpmath": "ce",
}
_RUNS = 3
_SEED = 0


def frame(study: Study) -> pd.DataFrame:
    """Time the engines: columns engine, multiply_adds, seconds, is_extrapolated.

    `seconds` are those of one gradient of one sample. They never come from the cache, because times
    belong to a machine and an hour.
    """
    del study
    rows: list[tuple[str, int, float, bool]] = []
    for engine, (batch, _) in _ENGINES.items():
        last: tuple[int, float] | None = None
        for width in _WIDTHS:
            model, x = _network(width), torch.rand(batch, 1, 28, 28)
            size = multiply_adds(model, x)
            if last is not None and last[1] * batch > _PATIENCE:
                rows.append((engine, size, last[1] * size / last[0], True))
                continue
            last = size, _seconds(_work(engine, model, x)) / batch
            rows.append((engine, *last, False))
    return pd.DataFrame(rows, columns=["engine", "multiply_adds", "seconds", "is_extrapolated"])


def _network(width: int) -> nn.Module:
    """A network of random weights: three convolutions of 3x3 and two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(98 * width, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, 10),
        )
    return model.eval()


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Count the multiply-adds of one forward pass of one sample.

    Each weight of a convolution or linear layer is used once at each position of the output.
    """
    counts: list[int] = []

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        positions = output[0].numel() // weight.shape[0]  # entries of one output channel
        counts.append(weight.numel() * positions)

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sum(counts)


def _work(engine: _Gradient, model: nn.Module, x: Tensor) -> Callable[[], object]:
    """A function that computes the gradients of a batch, with all that a caller waits for."""
    with torch.no_grad():
        z = model(x)
    v = z.double().softmax(1)
    if engine != "PyTorch":
        return lambda: gradient(model, x, v, engine=engine)
    wide, leaf, label = model.double(), x.double().requires_grad_(), z.argmax(1)
    return lambda: torch.autograd.grad(cross_entropy(wide(leaf), label, reduction="sum"), leaf)


def _seconds(work: Callable[[], object]) -> float:
    """The time of the shortest of up to three runs: fewer once they have taken 2 s together."""
    durations: list[float] = []
    while len(durations) < _RUNS and sum(durations) < _PATIENCE:
        started = time.perf_counter()
        work()
        durations.append(time.perf_counter() - started)
    return min(durations)


def cpu() -> str:
    """The instruction set that PyTorch's kernels use on this processor."""
    return torch.backends.cpu.get_cpu_capability()


def draw(frame: pd.DataFrame) -> Figure:
    """Draw seconds against multiply-adds: hollow and dashed where they are extrapolated."""
    figure, (axis,) = panels([""])
    figure.set_size_inches(7.2, 5.2)
    palette = colours(list(_COLOUR_KEYS.values()))
    for engine, rows in frame.groupby("engine", sort=False):
        colour = palette[_COLOUR_KEYS[str(engine)]]
        measured = rows[~rows["is_extrapolated"]]
        dashed = pd.concat([measured.tail(1), rows[rows["is_extrapolated"]]])
        batch, description = {str(name): kind for name, kind in _ENGINES.items()}[str(engine)]
        label = f"{engine}, {description}, batch {batch}"
        axis.plot("multiply_adds", "seconds", "o-", data=measured, color=colour, label=label)
        if len(dashed) > 1:
            axis.plot("multiply_adds", "seconds", "--", data=dashed, color=colour, label="")
            extrapolated = dashed.iloc[1:]
            axis.plot(
                "multiply_adds",
                "seconds",
                "o",
                data=extrapolated,
                mec=colour,
                mfc="white",
                label="",
            )
    decades = np.log10(frame["multiply_adds"].agg(["min", "max"]))
    axis.set(
        xscale="log",
        yscale="log",
        xlim=10 ** np.array([decades["min"] - 0.2, decades["max"] + 0.2]),
        xlabel="multiply-adds of a forward pass",
        ylabel="seconds for one gradient of one sample",
        title=f"One call for exact gradients, capture and preparation included\n({cpu()}, "
        f"{torch.get_num_threads()} threads; hollow, dashed: extrapolated in proportion)",
    )
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure
