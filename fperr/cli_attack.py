"""The command line of the attacks: `fperr attack`."""

import warnings
from pathlib import Path
from typing import Annotated

import typer
from tqdm.auto import tqdm

from fperr.attacks import AttackResult, Outcome, UnjudgedWarning, attack_in_batches
from fperr.attacks.batches import ABOUT
from fperr.cli_subjects import subject_of
from fperr.run_folder import opened


def attack_command(
    network: Annotated[
        str, typer.Argument(help="a name that `fperr zoo` lists, or path/to/module.py:factory")
    ],
    radius: Annotated[float, typer.Option(help="of the ball around each image")],
    loss: Annotated[str, typer.Option(help="name of the loss that is ascended")] = "tmifpe",
    n: Annotated[int, typer.Option(help="the first n images")] = 100,
    method: Annotated[str, typer.Option(help="pgd, apgd or fgsm")] = "pgd",
    norm: Annotated[str, typer.Option(help="linf or l2")] = "linf",
    steps: Annotated[int, typer.Option(help="gradients in each run")] = 100,
    arithmetic: Annotated[
        str, typer.Option(help="of the gradient: float16 to float64, tf32, or exact")
    ] = "float32",
    restarts: Annotated[int, typer.Option(help="runs from other starts")] = 1,
    seed: Annotated[int, typer.Option(help="of the starts")] = 0,
    dataset: Annotated[
        str | None,
        typer.Option("--data", help="data set, .npz with x and y, or folder of Fashion-MNIST"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="state_dict for path/to/module.py:factory")
    ] = None,
    logits: Annotated[
        str | None, typer.Option(help="function in that module: output of the model -> logits")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="images at once; each batch is written")] = 250,
    out: Annotated[
        Path | None, typer.Option(help="folder; the same command goes on [out/NAME-LOSS]")
    ] = None,
) -> None:
    """Attack a network on real images; written as it goes, resumed if it is cut off."""
    subject = subject_of(network, checkpoint, logits, dataset, n)
    folder = out or Path("out") / f"{subject.name}-{loss.replace(':', '-')}"
    x, y = subject.images.x, subject.images.y
    layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    counts = [0, 0]  # robust samples, and all so far
    with tqdm(total=len(x), desc="attack", bar_format=layout) as bar:

        def advance(found: AttackResult) -> None:
            counts[0] += found.outcome.robust
            counts[1] += found.outcome.samples
            bar.update(found.outcome.samples)
            bar.set_postfix_str(f"{counts[0]} of {counts[1]} withstand")

        with warnings.catch_warnings():  # said below, with the rest
            warnings.simplefilter("ignore", UnjudgedWarning)
            frame = attack_in_batches(
                subject.usable,
                x,
                y,
                folder,
                batch_size=batch_size,
                advance=advance,
                radius=radius,
                loss=loss,
                method=method,
                norm=norm,
                steps=steps,
                arithmetic=arithmetic,
                restarts=restarts,
                seed=seed,
            )
    with opened(folder, ABOUT, wait=True) as run:
        run.publish("attack.parquet", frame.to_parquet(index=False))
    outcome = Outcome.of_frame(frame)
    where = f"{norm} radius {radius:g}"
    effort = "" if method == "fgsm" else f", {steps} steps"
    effort += f", {restarts} restarts" if restarts > 1 else ""
    typer.echo(
        f"{subject.name}: {100 * outcome.robust_accuracy:.2f} % robust accuracy, "
        f"{100 * outcome.clean_accuracy:.2f} % clean accuracy, against {method} on {loss} in "
        f"{arithmetic}, {where}{effort}: {outcome.sentence}"
    )
    typer.echo(f"Written: {folder / 'attack.parquet'}, and the adversarial images beside it")
