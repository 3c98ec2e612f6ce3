"""The work of `fperr attribute`."""

from pathlib import Path
from typing import cast

import typer

from fperr import attribution
from fperr.attribution.entry import FRAME_FILE, PAGE_FILE
from fperr.attribution.request import ExactChoice, SearchChoice
from fperr.cli import options
from fperr.cli.work.subjects import subject_of
from fperr.cli.work.targets import target_classes
from fperr.networks.checks import number_of_classes
from fperr.networks.in_format import device_and_dtype
from fperr.vocabulary import FormatName, Norm


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
    result = attribution.attribute(
        model,
        images.x,
        images.y,
        radius=size,
        norm=cast(Norm, norm),
        steps=steps,
        starts=starts,
        format=cast(FormatName, format),
        targets=goals,
        exact=cast(ExactChoice, exact),
        search=cast(SearchChoice | None, search),
        why=why,
        seed=seed,
        box=ends,
        batch_size=batch_size,
        accept_probabilities=accept_probabilities,
        name=subject.name,
        out=folder,
        progress=False if quiet else None,
    )
    typer.echo(f"{subject.name}: {result.sentence}")
    for remark in result.remarks:
        typer.echo(remark)
    typer.echo(f"Written: {folder / PAGE_FILE} and {folder / FRAME_FILE}")
