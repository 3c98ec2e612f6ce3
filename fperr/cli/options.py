"""Options that several commands have, and their values, read from text: numbers, boxes, folders."""

import hashlib
import math
import re
from pathlib import Path
from typing import Annotated

import typer

from fperr.cli.names import DATASETS, NETWORKS, completes, listed
from fperr.vocabulary import RENAMED_OPTIONS

_SOURCE = (
    "name that `fperr zoo` lists, path/to/module.py:factory, or a package's network, as timm:NAME"
)
NetworkArgument = Annotated[
    str, typer.Argument(help=_SOURCE, metavar="NETWORK", autocompletion=completes(*NETWORKS))
]
NetworksArgument = Annotated[
    list[str],
    typer.Argument(
        help=_SOURCE.replace("name", "names", 1),
        metavar="NETWORK",
        autocompletion=completes(*NETWORKS),
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help=f"data set ({listed(DATASETS)}), .npz or .pt with x and y, "
        "folder of CIFAR or MNIST, or module.py:dataset",
        autocompletion=completes(*DATASETS),
    ),
]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="file of the state_dict for path/to/module.py:factory")
]
LogitsOption = Annotated[
    str | None,
    typer.Option(help="where the output holds the logits: name, index, or function of the module"),
]
DeviceOption = Annotated[
    str,
    typer.Option(help="where all is computed: cpu, cuda, cuda:1, or auto (cuda if there)"),
]
RadiusOption = Annotated[
    str,
    typer.Option(help="radius of the ball around each image, e.g. 0.03 or 8/255", metavar="NUMBER"),
]
BoxOption = Annotated[
    str,
    typer.Option(
        help="lowest and highest value of an input, e.g. --box=-0.81,2.02", metavar="LOW,HIGH"
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="print errors and warnings only; results are in the files it writes"
    ),
]


def renamed(parameter: typer.CallbackParam, value: str | None) -> None:
    """Refuse an option of an earlier version, and name today's.

    Raises:
        ValueError: It was given.
    """
    if value is not None:
        old = parameter.opts[0]
        raise ValueError(f"{old} is called {RENAMED_OPTIONS[old]} now: give {RENAMED_OPTIONS[old]}")


RenamedOption = Annotated[str | None, typer.Option(hidden=True, callback=renamed)]
_LONGEST = 100  # letters: file systems hold 255 bytes, and suffixes are added
_WITH_DIGEST = re.compile(r"-[0-9a-f]{8}$")


def number(text: str, option: str) -> float:
    """Read a finite number such as `0.03`, `1e-2` or `8/255`; a fraction is divided in float64.

    Raises:
        ValueError: The text is not such a number.

    Example:
        >>> number("8/255", "--radius") == 8 / 255
        True
    """
    numerator, slash, denominator = text.partition("/")
    try:
        if "_" in text or (slash and denominator.strip().startswith("-")):
            raise ValueError  # Python's float() takes both, and nobody means them
        value = float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"{option} must be a number as 0.03, 1e-2 or 8/255, got {text!r}: give one"
        )
    return value


def box(text: str) -> tuple[float, float]:
    """Read the lowest and highest value of an input, `LOW,HIGH`.

    Raises:
        ValueError: The text is not two numbers with the smaller one first.
    """
    ends = text.split(",")
    if len(ends) != 2:
        raise ValueError(f"--box must be LOW,HIGH, got {text!r}: give e.g. --box=-0.81,2.02")
    low, high = (number(end, "--box") for end in ends)
    if not low < high:
        raise ValueError(
            f"--box must be LOW,HIGH with LOW below HIGH, got {text!r}: give e.g. --box=-0.81,2.02"
        )
    return low, high


def is_class(text: str) -> bool:
    """Whether `--targets` names one class for all images."""
    return re.fullmatch(r"[+-]?\d+", text) is not None


def folder_name(name: str) -> str:
    """A folder's name for a network: letters, digits, `.`, `_` and `-`; different for each name.

    A name with other letters gets a digest of itself as suffix, and so does a name that already
    ends like such a suffix.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("-.")[:_LONGEST]
    if safe == name and safe and not _WITH_DIGEST.search(safe):
        return safe
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{safe}-{digest}" if safe else digest
