"""The command line of the attribution: `fperr attribute`."""

from pathlib import Path
from typing import Annotated, cast

import typer

from fperr import attribution
from fperr.attribution.entry import FRAME_FILE, PAGE_FILE
from fperr.attribution.request import ExactChoice, SearchChoice
from fperr.cli import options
from fperr.cli.subjects import CheckpointOption, DatasetOption, LogitsOption, subject_of
from fperr.networks.checks import number_of_classes
from fperr.networks.in_format import device_and_dtype
from fperr.vocabulary import FormatName, Norm


def attribute_command(
    network: Annotated[
        str, typer.Argument(help="name that `fperr zoo` lists, or path/to/module.py:factory")
    ],
    radius: Annotated[
        str,
        typer.Option(
            help="radius of the ball around each image, e.g. 0.03 or 8/255", metavar="NUMBER"
        ),
    ],
    n: Annotated[int, typer.Option(help="number of images, the first of the data set")] = 200,
    norm: Annotated[str, typer.Option(help="norm of the ball: linf or l2")] = "linf",
    steps: Annotated[int, typer.Option(help="number of gradients in each run")] = 100,
    starts: Annotated[int, typer.Option(help="number of random starts of each image")] = 3,
    format: Annotated[
        str,
        typer.Option(help="format of network and gradient: float16, bfloat16, tf32, float32 or "
                     "float64"),
    ] = "float32",
    exact: Annotated[
        str,
        typer.Option(help="images with exact gradients: all, sample, none, or auto (all if that "
                     "takes 20 minutes at most)"),
    ] = "auto",
    search: Annotated[
        str | None,
        typer.Option(help="what the floor is made of: restarts (all starts of all arms) or "
                     "autoattack"),
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="tell underflow and cancellation in the loss apart")
    ] = False,
    seed: Annotated[int, typer.Option(help="seed of the random starting points")] = 0,
    dataset: DatasetOption = None,
    checkpoint: CheckpointOption = None,
    logits: LogitsOption = None,
    accept_probabilities: Annotated[
        bool, typer.Option("--accept-probabilities", help="attack a model that ends in softmax")
    ] = False,
    box: Annotated[
        str,
        typer.Option(
            help="lowest and highest value of an input, e.g. --box=-0.81,2.02", metavar="LOW,HIGH"
        ),
    ] = "0,1",
    targets: Annotated[
        str | None,
        typer.Option(help="classes to reach: next (the class after an image's own), random, or the "
                     "name of an array of classes in the .npz"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="number of images at once")] = 250,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder to write to; the same command continues in it; by default "
            "out/NAME-attribution"
        ),
    ] = None,
) -> None:  # fmt: skip
    """Tell how much of an attack's robust accuracy is floating-point error."""
    size, ends = options.number(radius, "--radius"), options.box(box)
    subject = subject_of(network, checkpoint, logits, dataset, n)
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
        goals = options.targets(targets, images.y, classes, seed, dataset)
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
        out=folder,
        progress=True,
    )
    typer.echo(f"{subject.name}: {result.sentence}")
    for remark in result.remarks:
        typer.echo(remark)
    typer.echo(f"Written: {folder / PAGE_FILE} and {folder / FRAME_FILE}")
