"""The command line of the trace along a network: `fperr layers`."""

from pathlib import Path
from typing import Annotated

import typer

from fperr import checks, storage
from fperr.cli.options import folder_name
from fperr.cli.subjects import (
    CheckpointOption,
    DatasetOption,
    LogitsOption,
    check_folder,
    subject_of,
)
from fperr.measurement import trace_layers
from fperr.report.style import picture
from fperr.vocabulary import FORMAT_NAMES


def layers_command(
    network: Annotated[
        str, typer.Argument(help="name that `fperr zoo` lists, or path/to/module.py:factory")
    ],
    dataset: DatasetOption = None,
    checkpoint: CheckpointOption = None,
    logits: LogitsOption = None,
    n: Annotated[int, typer.Option(help="number of images, the first of the data set")] = 4,
    loss: Annotated[str, typer.Option(help="name of the loss")] = "mifpe",
    format: Annotated[str, typer.Option(help="name of the format")] = "float16",
    accept_probabilities: Annotated[
        bool, typer.Option("--accept-probabilities", help="trace a model that ends in softmax")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="folder to write to; by default out/NAME-layers")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="write into a folder that is not empty")
    ] = False,
) -> None:
    """Show where along a network the error of its gradient arises."""
    subject = subject_of(network, checkpoint, logits, dataset, n)
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
        )
        typer.echo(report.summary().to_string(index=False, float_format="{:.3g}".format))
        report.to_parquet(folder / "layers.parquet")
        storage.write(folder / "layers.png", picture(report.plot.relative_error(), dpi=150))
    typer.echo(f"Written: {folder / 'layers.parquet'}, {folder / 'layers.png'}")
