"""What exact gradients cost, by engine and size of the network."""

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
_Gradient = Literal["float64"] | EngineName
_ENGINES: dict[_Gradient, tuple[int, str]] = {  # batch, what it is
    "float64": (64, "PyTorch's own"),
    "double_word": (16, "80 bits"),
    "ball": (1, "128 bits"),
    "mpmath": (1, "128 bits, checked at 256"),
}
_LONGEST = 2.0  # seconds: an engine's next network, four times as large, is extrapolated
_PLACES = {"float64": "cw", "double_word": "tmifpe", "ball": "mifpe", "mpmath": "ce"}  # of colours
_RUNS = 3
_SEED = 0


def frame(study: Study) -> pd.DataFrame:
    """Columns engine, multiply_adds, seconds (for one gradient of one sample), is_extrapolated.

    Never from the cache: times belong to a machine and an hour.
    """
    del study
    rows: list[tuple[str, int, float, bool]] = []
    for engine, (batch, _) in _ENGINES.items():
        known: tuple[int, float] | None = None
        for width in _WIDTHS:
            model, x = _network(width), torch.rand(batch, 1, 28, 28)
            size = multiply_adds(model, x)
            if known is not None and known[1] * batch > _LONGEST:
                rows.append((engine, size, known[1] * size / known[0], True))
                continue
            known = size, _seconds(_work(engine, model, x)) / batch
            rows.append((engine, *known, False))
    return pd.DataFrame(rows, columns=["engine", "multiply_adds", "seconds", "is_extrapolated"])


def _network(width: int) -> nn.Module:
    """Two convolutions of 3x3, strides 2, and two linear layers, random weights."""
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
    """Of one forward pass of one sample, as the weights' shapes and the outputs' sizes give it."""
    counts: list[int] = []

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        places = output[0].numel() // weight.shape[0]
        counts.append(weight.numel() * places)

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sum(counts)


def _work(engine: _Gradient, model: nn.Module, x: Tensor) -> Callable[[], object]:
    """A gradient of a batch, with everything that a caller waits for."""
    with torch.no_grad():
        z = model(x)
    v = z.double().softmax(1)
    if engine != "float64":
        return lambda: gradient(model, x, v, engine=engine)
    wide, leaf, label = model.double(), x.double().requires_grad_(), z.argmax(1)
    return lambda: torch.autograd.grad(cross_entropy(wide(leaf), label, reduction="sum"), leaf)


def _seconds(work: Callable[[], object]) -> float:
    """The shortest run of three, or of as many as there is time for."""
    found: list[float] = []
    while len(found) < _RUNS and sum(found) < _LONGEST:
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def cpu() -> str:
    """What kernels PyTorch chooses on this processor."""
    return torch.backends.cpu.get_cpu_capability()


def draw(frame: pd.DataFrame) -> Figure:
    """Seconds against multiply-adds; hollow and dashed where extrapolated in proportion to size."""
    figure, (axis,) = panels([""])
    figure.set_size_inches(7.2, 5.2)
    palette = colours(list(_PLACES.values()))
    for engine, rows in frame.groupby("engine", sort=False):
        colour = palette[_PLACES[str(engine)]]
        measured = rows[~rows["is_extrapolated"]]
        guessed = pd.concat([measured.tail(1), rows[rows["is_extrapolated"]]])
        batch, what = {str(name): kind for name, kind in _ENGINES.items()}[str(engine)]
        label = f"{engine}, {what}, batch {batch}"
        axis.plot("multiply_adds", "seconds", "o-", data=measured, color=colour, label=label)
        if len(guessed) > 1:
            axis.plot("multiply_adds", "seconds", "--", data=guessed, color=colour, label="")
            rest = guessed.iloc[1:]
            axis.plot("multiply_adds", "seconds", "o", data=rest, mec=colour, mfc="white", label="")
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
