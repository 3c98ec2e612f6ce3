"""The command line of the attacks: `fperr attack`."""

import warnings
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor
from tqdm.auto import tqdm

from fperr.attacks import AttackResult, AttackWarning, Outcome, attack_in_batches
from fperr.attacks.batches import SETTINGS_FILE
from fperr.cli import options
from fperr.cli.subjects import CheckpointOption, DatasetOption, LogitsOption, subject_of
from fperr.data import Images
from fperr.networks.checks import number_of_classes
from fperr.networks.in_format import device_and_dtype
from fperr.run_folder import opened


def attack_command(
    network: Annotated[
        str, typer.Argument(help="name that `fperr zoo` lists, or path/to/module.py:factory")
    ],
    radius: Annotated[
        str,
        typer.Option(
            help="radius of the ball around each image, e.g. 0.03 or 8/255", metavar="NUMBER"
        ),
    ],
    loss: Annotated[str, typer.Option(help="name of the loss that is ascended")] = "tmifpe",
    n: Annotated[int, typer.Option(help="number of images, the first of the data set")] = 100,
    method: Annotated[str, typer.Option(help="method: pgd, apgd or fgsm")] = "pgd",
    norm: Annotated[str, typer.Option(help="norm of the ball: linf or l2")] = "linf",
    steps: Annotated[int, typer.Option(help="number of gradients in each run")] = 100,
    format: Annotated[
        str,
        typer.Option(
            help="format of network and gradient: float16, bfloat16, tf32, float32, float64, or "
            "exact"
        ),
    ] = "float32",
    arithmetic: Annotated[str | None, typer.Option(hidden=True, callback=options.renamed)] = None,
    restarts: Annotated[int, typer.Option(help="number of runs, each from another start")] = 1,
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
        typer.Option(
            help="classes to reach: a class (its own images are left out), next (the class after "
            "an image's own), random, or the name of an array of classes in the .npz"
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="number of images at once; each batch is written")
    ] = 250,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder to write to; the same command continues in it; by default out/NAME-LOSS"
        ),
    ] = None,
) -> None:
    """Attack a network on real images. Each batch is written; the same command continues it."""
    size, ends = options.number(radius, "--radius"), options.box(box)
    del arithmetic
    subject = subject_of(network, checkpoint, logits, dataset, n)
    folder = out or Path("out") / options.folder_name(f"{subject.name}-{loss}")
    model, images = subject.usable, subject.images
    inputs = images.x.to(device_and_dtype(model)[1])
    classes = number_of_classes(model, inputs, accept_probabilities=accept_probabilities)
    target_labels = None
    sample_numbers = list(range(len(images.x)))
    if targets is not None:
        target_labels = options.targets(targets, images.y, classes, seed, dataset)
        if options.is_class(targets):
            images, target_labels, sample_numbers = _of_other_classes(images, target_labels)
    layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    counts = [0, 0]  # robust samples, and all so far
    with tqdm(total=len(images.x), desc="attack", bar_format=layout) as bar:

        def advance(result: AttackResult) -> None:
            counts[0] += result.outcome.robust
            counts[1] += result.outcome.samples
            bar.update(result.outcome.samples)
            bar.set_postfix_str(f"{counts[0]} of {counts[1]} withstand")

        with warnings.catch_warnings():  # said below, with the rest
            warnings.simplefilter("ignore", AttackWarning)
            frame = attack_in_batches(
                model,
                images.x,
                images.y,
                folder,
                batch_size=batch_size,
                advance=advance,
                radius=size,
                loss=loss,
                method=method,
                norm=norm,
                steps=steps,
                targets=target_labels,
                format=format,
                restarts=restarts,
                seed=seed,
                box=ends,
                accept_probabilities=accept_probabilities,
            )
    frame["sample"] = [sample_numbers[sample] for sample in frame["sample"]]
    with opened(folder, SETTINGS_FILE, wait=True) as run:
        run.publish("attack.parquet", frame.to_parquet(index=False))
    effort = "" if method == "fgsm" else f", {steps} steps"
    effort += f", {restarts} restarts" if restarts > 1 else ""
    how = f"{method} on {loss} in {format}, {norm} radius {size:g}{effort}"
    outcome = Outcome.from_frame(frame)
    at_once = int((frame["first_success_step"] == 0).sum())
    typer.echo(f"{subject.name}: {_described(outcome, at_once, how, targets)}")
    for remark in outcome.remarks:
        typer.echo(remark)
    typer.echo(f"Written: {folder / 'attack.parquet'}, and the adversarial images beside it")


def _of_other_classes(images: Images, targets: Tensor) -> tuple[Images, Tensor, list[int]]:
    """Leave out the images of the target class, and say how many.

    Returns:
        The other images, their targets, and their numbers in the data set.
    """
    is_other = images.y != targets
    sample_numbers = [int(sample) for sample in is_other.nonzero()]
    if not sample_numbers:
        raise ValueError(
            f"--targets {int(targets[0])} is the class of all {len(targets)} images: give another"
        )
    if len(sample_numbers) < len(targets):
        typer.echo(
            f"{len(targets) - len(sample_numbers)} of {len(targets)} images are of class "
            f"{int(targets[0])}, which is no target for them: they are left out"
        )
    other_images = Images(images.name, images.x[is_other], images.y[is_other])
    return other_images, targets[is_other], sample_numbers


def _described(outcome: Outcome, at_once: int, how: str, targets: str | None) -> str:
    n = outcome.samples
    low, high = (100 * end for end in outcome.robust_interval)
    if targets is not None:
        return (
            f"the target ({targets}) was reached for {100 * outcome.fooled / n:.2f} % "
            f"({outcome.fooled} of {n}) by {how}; without an attack for {100 * at_once / n:.2f} %"
        )
    return (
        f"{100 * outcome.robust_accuracy:.2f} % robust accuracy ({outcome.robust} of {n}, 95 % "
        f"interval {low:.1f} to {high:.1f} %) against {how}; "
        f"clean accuracy {100 * outcome.clean_accuracy:.2f} %"
    )
