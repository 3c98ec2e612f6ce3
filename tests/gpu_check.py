"""`make gpu-check`: what the tests marked `gpu`, and a short benchmark, say on this card.

It writes one Markdown file to send in, out/gpu-check.md. Without a card it says so, and exits
with 1.
"""

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import fperr
from fperr import data, exact, zoo

NETWORKS = ("fashion_standard", "fashion_saturated")
FORMATS = ("float32", "float64", "float16", "bfloat16", "tf32")
ENGINES = ("float64", "double_word")
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is computed: images of an attack, of an exact gradient, and steps."""

    attacked: int = 250
    exact: int = 64
    steps: int = 20


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median time of a run, once it is warm and the device has ended."""
    times = []
    for _ in range(1 + REPEATS):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[REPEATS // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def synchronisations(device: torch.device) -> Iterator[list[str]]:
    """The waits of a block for the device, as PyTorch reports them; none on a CPU."""
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [str(w.message) for w in caught if "synchronizing" in str(w.message)]


def step_times(
    name: str, model: nn.Module, images: data.Images, sizes: Sizes, device: torch.device
) -> list[dict[str, object]]:
    """A row for each format: the time of an attack's step, and its waits."""
    x, y = images.x[: sizes.attacked].to(device), images.y[: sizes.attacked].to(device)

    def attacked(format: str, steps: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fperr.attack(model, x, y, radius=0.05, steps=steps, format=format, loss="mifpe")

    rows = []
    for format in FORMATS:
        if format == "tf32" and device.type != "cuda":
            continue
        long, short = (
            seconds(lambda n=n, f=format: attacked(f, n), device) for n in (1 + sizes.steps, 1)
        )
        with synchronisations(device) as few:
            attacked(format, 1)
        with synchronisations(device) as many:
            attacked(format, 1 + sizes.steps)
        rows.append(
            {
                "network": name,
                "format": format,
                "ms a step": 1000 * (long - short) / sizes.steps,
                "waits a step": (len(many) - len(few)) / sizes.steps,
            }
        )
    return rows


def exact_times(
    name: str, model: nn.Module, images: data.Images, sizes: Sizes, device: torch.device
) -> list[dict[str, object]]:
    """A row for each engine: an exact gradient over PyTorch's in float32, and its waits."""
    x = images.x[: sizes.exact].to(device)
    v = torch.nn.functional.one_hot(images.y[: sizes.exact], 10).to(device, torch.float64) - 0.1
    plain = seconds(lambda: _float32_gradient(model, x, v), device)
    rows: list[dict[str, object]] = []
    for engine in ENGINES:
        prepared = exact.prepare(model)

        def run(prepared: object = prepared, engine: str = engine) -> None:
            exact.gradient(prepared, x, v, engine=engine)  # type: ignore[arg-type]

        took = seconds(run, device)
        with synchronisations(device) as waits:
            run()
        rows.append(
            {
                "network": name,
                "engine": engine,
                "ms": 1000 * took,
                "÷ float32": took / plain,
                "waits": len(waits),
            }
        )
    return rows


def _float32_gradient(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf), leaf, v.to(x.dtype))
    return gradient


def benchmark(device: torch.device, sizes: Sizes) -> str:
    """The tables of steps and of exact gradients, in Markdown."""
    steps, gradients = [], []
    for name in NETWORKS:
        model, images = zoo.load(name).to(device), data.fashion_mnist_1000()
        steps += step_times(name, model, images, sizes, device)
        gradients += exact_times(name, model, images, sizes, device)
    tables = (pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3g")
              for rows in (steps, gradients))  # fmt: skip
    return "\n\n".join(tables)


def tested() -> str:
    """The end of what the tests marked `gpu` print."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfs", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "\n".join(done.stdout.splitlines()[-40:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/gpu-check.md"))
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("gpu-check: PyTorch sees no CUDA device here, so that nothing can be checked")
    device = torch.device("cuda")
    parts = [
        f"# {torch.cuda.get_device_name(device)}",
        f"fperr {fperr.__version__}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"compute capability {torch.cuda.get_device_capability(device)}",
        "## Times",
        benchmark(device, Sizes()),
        "## Tests",
        f"```text\n{tested()}\n```",
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(parts) + "\n")
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
