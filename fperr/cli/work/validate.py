"""The work of `fperr validate kernels`, `bounds` and `assumption`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import typer
from torch import Tensor

from fperr import data, storage, zoo
from fperr.bounds import kernels
from fperr.cli.work.subjects import check_folder
from fperr.cli.work.terminal import print_table, shows_progress
from fperr.errors import FperrError
from fperr.formats import TF32, format_named
from fperr.report.style import picture
from fperr.validation import assumption, falsify, logit_gradients, summary, sweep

_IMAGES = 1000


def kernels_command(
    *,
    device: str,
    stride: int,
    quiet: bool,
) -> None:
    """Sweep every float32 through this machine's exp and log, and keep the largest errors."""
    if stride < 1:
        raise ValueError(f"--stride must be at least 1, got {stride}: leave it out for all")
    if torch.device(_device_type(device)) == torch.device("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device} needs CUDA, which is not there: use --device cpu")
    accuracy_by_format, results = sweep(device, stride=stride, progress=shows_progress(quiet=quiet))
    frame = pd.DataFrame(
        [
            (s.function, s.route, f"{s.count:,}", f"{s.ulps:.4f}", f"{s.argument:.9g}")
            for s in results
        ],
        columns=["function", "way", "numbers", "largest error, ulps", "at"],
    )
    print_table(frame)
    for name, accuracy in accuracy_by_format.items():
        typer.echo(
            f"{name}: exp {accuracy.exp_ulps:.4f}, log {accuracy.log_ulps:.4f} ulps; "
            f"{accuracy.source}"
        )
    if stride == 1:
        typer.echo(f"Kept: {kernels.keep(accuracy_by_format, torch.device(device))}")


def bounds_command(
    *,
    cases: int,
    formats: str,
    kernel: str,
    seed: int,
    out: Path,
    quiet: bool,
) -> None:
    """Try to refute the bounds on the logit gradient, at random and by search."""
    names = _checked_formats(formats)
    if kernels.kernel_named(kernel) is kernels.KERNELS["cuda"]:
        raise ValueError("kernel 'cuda' is of CUDA devices, the cases run on the CPU: use 'cpu'")
    if cases < 1:
        raise ValueError(f"--cases must be at least 1, got {cases}: leave it out for 100,000")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed must be from 0 to 2^63 - 1, got {seed}: give another")
    check_folder(out, overwrite=True)
    storage.prepare(out)
    trials = falsify(
        names,
        cases,
        logits=torch.cat(list(_real_logits())),
        kernel=kernel,
        computed=partial(logit_gradients.pytorch_gradient, strided=kernel == "cpu_strided"),
        seed=seed,
        progress=shows_progress(quiet=quiet),
    )
    bound_table, tightness = summary.table(trials), summary.tightness(trials)
    storage.write(out / "bounds.csv", bound_table.to_csv(index=False).encode())
    storage.write(out / "tightness.csv", tightness.to_csv(index=False).encode())
    storage.write(out / "bounds.png", picture(summary.figure(trials), dpi=150))
    print_table(bound_table, "{:.4g}".format)
    typer.echo("\nMedian of bound/error, cross-entropy at c = 1 below saturation:\n")
    print_table(tightness, "{:.3g}".format)
    typer.echo("")
    for line in summary.sentences(trials):
        typer.echo(line)
    typer.echo(f"Written: {out / 'bounds.csv'}, {out / 'tightness.csv'}, {out / 'bounds.png'}")
    if (trials["ratio"] > 1).any():
        raise FperrError("the proved bound is violated: see the table, and report it")


def assumption_command(
    *,
    networks: list[str],
    n: int,
    out: Path,
    quiet: bool,
) -> None:
    """Is the size of the gradient G(t) times a constant, as maximising G takes for granted?"""
    del quiet  # it prints no progress
    check_folder(out, overwrite=True)
    with storage.prepared(out):
        frames_by_network = {
            name: assumption.lengths(
                zoo.load(name), data.images_named(zoo.entry(name).dataset).first(n).x
            )
            for name in networks
        }
        storage.write(
            out / "assumption.png", picture(assumption.figure(frames_by_network), dpi=150)
        )
        by_network = assumption.summary(frames_by_network)
        storage.write(out / "assumption.csv", by_network.to_csv(index=False).encode())
    print_table(by_network, "{:.3g}".format)
    typer.echo(f"Written: {out / 'assumption.png'}, {out / 'assumption.csv'}")


def _device_type(device: str) -> str:
    """The type of a device name: `cpu` or `cuda`.

    Raises:
        ValueError: The device is of another type.
    """
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}: leave it out for the CPU")
    return kind


def _checked_formats(formats: str) -> list[str]:
    """Read the option `--formats`.

    Raises:
        ValueError: A format is unknown, has no bounds, or is named twice.
    """
    names = [name.strip() for name in formats.split(",")]
    for name in names:
        if format_named(name) == TF32:
            raise ValueError("--formats: the bounds are not of 'tf32': leave it out")
    if len(set(names)) < len(names):
        raise ValueError(f"--formats names something twice, got {formats!r}: leave one out")
    return names


def _real_logits() -> Iterator[Tensor]:
    """Yield logits of the packaged networks, and of MNIST's that are at hand."""
    for entry in zoo.REGISTRY.values():
        is_packaged = entry.dataset == "fashion_mnist_1000"
        if entry.dataset == "mnist_test" and zoo.is_at_hand(entry.name):
            images = data.mnist_test().first(_IMAGES)
        elif is_packaged:
            images = data.images_named(entry.dataset).first(_IMAGES)
        else:
            continue
        with torch.no_grad():
            yield zoo.load(entry.name)(images.x).to(torch.float64)
