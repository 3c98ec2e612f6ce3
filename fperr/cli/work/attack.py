"""The work of `fperr attack`."""

import warnings
from pathlib import Path

import typer
from torch import Tensor

from fperr.attacks import AttackResult, AttackWarning, Outcome, attack_in_batches
from fperr.attacks.batches import SETTINGS_FILE
from fperr.cli import options
from fperr.cli.work.subjects import subject_of
from fperr.cli.work.targets import target_classes
from fperr.cli.work.terminal import progress_bar
from fperr.data import Images
from fperr.networks.checks import number_of_classes
from fperr.networks.in_format import device_and_dtype
from fperr.run_folder import opened


def attack_command(
    *,
    network: str,
    radius: str,
    loss: str,
    n: int | None,
    method: str,
    norm: str,
    steps: int,
    format: str,
    restarts: int,
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
) -> None:
    """Attack a network on real images. Each batch is written; the same command continues it."""
    size, ends = options.number(radius, "--radius"), options.box(box)
    subject = subject_of(network, checkpoint, logits, dataset, n, device, usual=100)
    folder = out or Path("out") / options.folder_name(f"{subject.name}-{loss}")
    model, images = subject.usable, subject.images
    inputs = images.x.to(device_and_dtype(model)[1])
    classes = number_of_classes(model, inputs, accept_probabilities=accept_probabilities)
    target_labels = None
    sample_numbers = list(range(len(images.x)))
    if targets is not None:
        target_labels = target_classes(targets, images.y, classes, seed, dataset)
        if options.is_class(targets):
            images, target_labels, sample_numbers = _of_other_classes(images, target_labels)
    counts = [0, 0]  # robust samples, and all so far
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("attack", total=len(images.x), text="")

        def advance(result: AttackResult) -> None:
            counts[0] += result.outcome.robust
            counts[1] += result.outcome.samples
            text = f"{counts[0]} of {counts[1]} withstand"
            bar.update(task, advance=result.outcome.samples, text=text)

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
