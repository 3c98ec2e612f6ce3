"""The images of a network, by name or from a file; the network is not needed for them."""

import inspect
from pathlib import Path
from typing import Any

from fperr import data, zoo
from fperr.networks import from_file

USUAL_IMAGES = 80  # a verdict that fewer than 5 % fail needs 59 that are classified correctly


def images_of(
    source: str, dataset: str | None, n: int | None, usual: int = USUAL_IMAGES
) -> data.Images:
    """The images of a network.

    Args:
        source: Name of a network of the zoo, or another network, as `path/to/module.py:factory`.
        dataset: See `named_images`; None for the data set of the zoo's network.
        n: Number of images, the first ones; None for `usual`, or all if there are fewer.
        usual: Number of images where none is given.

    Raises:
        ValueError, FperrError: The data set is missing or unusable, or none is named.
    """
    if dataset is None and ":" in source:
        raise ValueError(f"{source} brings no images: name a data set")
    return named_images(dataset or zoo.entry(source).dataset, n, usual)


def named_images(name: str, n: int | None, usual: int = USUAL_IMAGES) -> data.Images:
    """The first images of a data set.

    Args:
        name: Name of a data set, a file or folder of images, or `module.py:dataset`.
        n: Number of images; None for `usual`, or all if there are fewer.
        usual: Number of images where none is given.

    Raises:
        ValueError, FperrError: The data set is missing or unusable.
    """
    if ".py:" in name:
        path, _, attribute = name.rpartition(":")
        found = from_file.attribute(from_file.module(Path(path)), attribute, path)
        dataset: Any = found() if inspect.isroutine(found) or inspect.isclass(found) else found
        images = data.from_dataset(dataset, usual if n is None else n, attribute)
    else:
        images = data.images_named(name)
    return images.first(min(usual, len(images.x)) if n is None else n)
