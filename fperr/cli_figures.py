"""The command line of the figures: `fperr figures`."""

from pathlib import Path
from typing import Annotated

import typer
from platformdirs import user_cache_path
from tqdm.auto import tqdm

from fperr import zoo
from fperr.figures import FIGURES, Study, Subject, make, paper_size

_PICTURES = "png", "svg", "pdf"
_IMAGES = 100


def figures_command(
    names: Annotated[list[str], typer.Argument(help=f"all, or some of {', '.join(FIGURES)}")],
    n: Annotated[
        int | None,
        typer.Option(help="the first n images of each network [100]", show_default=False),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="as many images as the papers (table1: all); takes hours"),
    ] = False,
    networks: Annotated[
        str | None,
        typer.Option(
            help="names that `fperr zoo` lists, comma-separated [a figure's own: packaged ones, "
            "and MNIST's where FPERR_DATA holds them]"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("figures"),
    cache: Annotated[
        Path | None, typer.Option(help="folder of results that are used again")
    ] = None,
    pictures: Annotated[str, typer.Option(help="png, svg, pdf, comma-separated")] = "png",
) -> None:
    """Draw the papers' figures and tables from real networks; results are kept and used again."""
    wanted = list(FIGURES) if names == ["all"] else names
    for name in wanted:
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}: expected all, {', '.join(FIGURES)}")
    kinds = tuple(kind.strip() for kind in pictures.split(","))
    if not set(kinds) <= set(_PICTURES):
        raise ValueError(f"pictures must be some of {', '.join(_PICTURES)}, got {pictures!r}")
    if full and n is not None:
        raise ValueError("--full and --n exclude each other: leave one out")
    chosen = None if networks is None else [zoo.entry(s.strip()).name for s in networks.split(",")]
    number = _IMAGES if n is None else n
    size = "--full" if full else f"--n {number}"
    subjects: dict[tuple[str, int], Subject] = {}  # loaded once for all figures
    with tqdm(wanted, desc="figures") as bar:
        for name in bar:
            bar.set_postfix_str(name)
            recipe = FIGURES[name]
            used = (recipe.available if chosen is None else chosen) if recipe.networks else []
            counts = [paper_size(each, recipe.most) if full else number for each in used]
            for key in zip(used, counts, strict=True):
                subjects.setdefault(key, Subject(*key))
            mine = tuple(subjects[key] for key in zip(used, counts, strict=True))
            study = Study(mine, cache or user_cache_path("fperr") / "figures")
            listed = f" --networks {','.join(used)}" if used else ""
            make(name, study, out, f"fperr figures {name} {size}{listed}", kinds)
    typer.echo(f"Written: {out}/ " + ", ".join(wanted))
