"""The work of `fperr figures`."""

from pathlib import Path

import typer
from platformdirs import user_cache_path

from fperr import zoo
from fperr.cli.names import PICTURES
from fperr.cli.work.subjects import check_folder
from fperr.cli.work.terminal import progress_bar
from fperr.figures import FIGURES, Study, Subject, make, paper_size
from fperr.networks.model import usable_device


def figures_command(
    *,
    names: list[str],
    n: int | None,
    full: bool,
    networks: str | None,
    out: Path,
    cache: Path | None,
    pictures: str,
    device: str,
    quiet: bool,
) -> None:
    """Draw the papers' figures and tables from real networks; results are kept and used again."""
    figure_names = list(FIGURES) if "all" in names else list(dict.fromkeys(names))
    for name in figure_names:
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}: expected all, {', '.join(FIGURES)}")
    kinds = tuple(kind.strip() for kind in pictures.split(","))
    if not set(kinds) <= set(PICTURES):
        raise ValueError(f"pictures must be some of {', '.join(PICTURES)}, got {pictures!r}")
    if full and n is not None:
        raise ValueError("--full and --n exclude each other: leave one out")
    if n is not None and n < 1:
        raise ValueError(f"--n must be at least 1, got {n}")
    where = usable_device(device)
    cache_folder = cache or user_cache_path("fperr") / "figures"
    check_folder(out, overwrite=True)
    check_folder(cache_folder, overwrite=True, option="--cache")
    requested = [] if networks is None else [name.strip() for name in networks.split(",")]
    selected = list(dict.fromkeys(zoo.entry(name).name for name in requested))
    if selected and not any(FIGURES[name].networks for name in figure_names):
        raise ValueError(
            f"{', '.join(figure_names)} is drawn from no network: leave out --networks"
        )
    subjects: dict[tuple[str, int], Subject] = {}  # loaded once for all figures
    sizes: dict[str, str] = {}  # as an option, by figure
    subjects_by_figure: dict[str, tuple[Subject, ...]] = {}
    for name in figure_names:
        recipe = FIGURES[name]
        network_names = (selected or recipe.available) if recipe.networks else []
        count = recipe.images if n is None else n
        sizes[name] = "--full" if full else f"--n {count}"
        counts = [
            paper_size(network, recipe.max_images) if full else count for network in network_names
        ]
        keys = list(zip(network_names, counts, strict=True))
        for key in keys:
            subjects.setdefault(key, Subject(*key, where))
        subjects_by_figure[name] = tuple(subjects[key] for key in keys)
    for subject in subjects.values():
        _ = subject.images  # raises where there are fewer: before hours of drawing
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("figures", total=len(figure_names), text="")
        for name in figure_names:
            bar.update(task, text=name)
            device_option = "" if where.type == "cpu" else f" --device {where}"
            names_used = ",".join(subject.name for subject in subjects_by_figure[name])
            networks_option = f" --networks {names_used}" if names_used else ""
            study = Study(subjects_by_figure[name], cache_folder)
            command = f"fperr figures {name} {sizes[name]}{networks_option}{device_option}"
            make(name, study, out, command, kinds)
            bar.advance(task)
    typer.echo(f"Written: {out}/ " + ", ".join(figure_names))
