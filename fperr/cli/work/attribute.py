"""The work of `fperr attribute`."""

from pathlib import Path
from typing import Any

import typer

from fperr import attribution
from fperr.attribution.entry import FRAME_FILE, PAGE_FILE
from fperr.attribution.forecast import forecast_words
from fperr.cli import options
from fperr.cli.work.subjects import subject_of
from fperr.cli.work.targets import target_classes
from fperr.networks.checks import number_of_classes
from fperr.networks.in_format import device_and_dtype


def attribute_command(
    *,
    network: str,
    radius: str,
    n: int | None,
    norm: str,
    steps: int,
    starts: int,
    format: str,
    exact: str,
    search: str | None,
    why: bool,
    seed: int,
    dataset: str | None,
    checkpoint: Path | None,
    logits: str | None,
    device: str,
    accept_probabilities: bool,
    box: str,
    targets: str | None,
    batch_size: int,
    dry_run: bool,
    out: Path | None,
    quiet: bool,
) -> None:  # fmt: skip
    """Tell how much of an attack's robust accuracy is floating-point error."""
    size, ends = options.number(radius, "--radius"), options.box(box)
    subject = subject_of(network, checkpoint, logits, dataset, n, device, usual=200)
    model, images = subject.usable, subject.images
    folder = out or Path("out") / options.folder_name(f"{subject.name}-attribution")
    goals = None
    if targets is not None:
        if options.is_class(targets):
            raise ValueError(
                f"--targets must be next, random or the name of an array, got {targets}: a class "
                "is no target for its own images"
            )
        inputs = images.x.to(device_and_dtype(model)[1])
        classes = number_of_classes(model, inputs, accept_probabilities=accept_probabilities)
        goals = target_classes(targets, images.y, classes, seed, dataset)
    arguments: dict[str, Any] = {
        "radius": size,
        "norm": norm,
        "steps": steps,
        "starts": starts,
        "format": format,
        "targets": goals,
        "exact": exact,
        "search": search,
        "why": why,
        "seed": seed,
        "box": ends,
        "batch_size": batch_size,
        "accept_probabilities": accept_probabilities,
        "name": subject.name,
    }
    if dry_run:
        typer.echo(f"{subject.name}: {forecast_words(model, images.x, images.y, **arguments)}")
        return
    result = attribution.attribute(
        model, images.x, images.y, out=folder, progress=False if quiet else None, **arguments
    )
    typer.echo(f"{subject.name}: {result.sentence}")
    for remark in result.remarks:
        typer.echo(remark)
    typer.echo(f"Written: {folder / PAGE_FILE} and {folder / FRAME_FILE}")
