"""The command line of the figures: `fperr figures`."""

import os
from pathlib import Path
from typing import Annotated

import typer
from platformdirs import user_cache_path
from tqdm.auto import tqdm

from fperr import zoo
from fperr.figures import FIGURES, Study, Subject, make

_PACKAGED = "fashion_mnist_1000"
_MNIST = "mnist_levelsets_eps0.4", "mnist_fastat_pgd", "mnist_wong_kolter"
_PICTURES = "png", "svg", "pdf"


def figures_command(
    names: Annotated[list[str], typer.Argument(help=f"all, or some of {', '.join(FIGURES)}")],
    n: Annotated[int, typer.Option(help="the first n images of each network")] = 100,
    networks: Annotated[
        str | None,
        typer.Option(
            help="names that `fperr zoo` lists, comma-separated [the packaged ones, and MNIST's "
            "where FPERR_DATA holds them]"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("figures"),
    cache: Annotated[
        Path | None, typer.Option(help="folder of results that are used again")
    ] = None,
    pictures: Annotated[str, typer.Option(help="png, svg, pdf, comma-separated")] = "png",
) -> None:
    """Draw the papers' figures from real networks; results are kept and used again."""
    wanted = list(FIGURES) if names == ["all"] else names
    for name in wanted:
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}: expected all, {', '.join(FIGURES)}")
    kinds = tuple(kind.strip() for kind in pictures.split(","))
    if not set(kinds) <= set(_PICTURES):
        raise ValueError(f"pictures must be some of {', '.join(_PICTURES)}, got {pictures!r}")
    chosen = _default_networks() if networks is None else networks.split(",")
    subjects = tuple(Subject(zoo.entry(name.strip()).name, n) for name in chosen)
    study = Study(subjects, cache or user_cache_path("fperr") / "figures")
    with tqdm(wanted, desc="figures") as bar:
        for name in bar:
            bar.set_postfix_str(name)
            command = f"fperr figures {name} --n {n} --networks {','.join(chosen)}"
            make(name, study, out, command, kinds)
    typer.echo(f"Written: {out}/ " + ", ".join(wanted))


def _default_networks() -> list[str]:
    packaged = [e.name for e in zoo.REGISTRY.values() if e.dataset == _PACKAGED]
    return packaged + (list(_MNIST) if os.environ.get("FPERR_DATA") else [])
