"""The work of `fperr layers`: the trace along a network."""

from pathlib import Path

import typer

from fperr import checks, storage
from fperr.cli.options import folder_name
from fperr.cli.work.subjects import (
    check_folder,
    subject_of,
)
from fperr.cli.work.terminal import print_table, shows_progress
from fperr.measurement import trace_layers
from fperr.report.style import picture
from fperr.vocabulary import FORMAT_NAMES


def layers_command(
    *,
    network: str,
    dataset: str | None,
    checkpoint: Path | None,
    logits: str | None,
    device: str,
    n: int | None,
    loss: str,
    format: str,
    accept_probabilities: bool,
    out: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Show where along a network the error of its gradient arises."""
    subject = subject_of(network, checkpoint, logits, dataset, n, device, usual=4)
    folder = out or Path("out") / folder_name(f"{subject.name}-layers")
    check_folder(folder, overwrite=overwrite)
    with storage.prepared(folder):
        report = trace_layers(
            subject.model,
            subject.images.x,
            subject.images.y,
            loss=loss,
            format=checks.choice("format", format, FORMAT_NAMES),
            logits=subject.logits,
            accept_probabilities=accept_probabilities,
            progress=shows_progress(quiet=quiet),
        )
        print_table(report.summary(), "{:.3g}".format)
        report.to_parquet(folder / "layers.parquet")
        storage.write(folder / "layers.png", picture(report.plot.relative_error(), dpi=150))
    typer.echo(f"Written: {folder / 'layers.parquet'}, {folder / 'layers.png'}")
