"""Downloads of what networks and data sets need."""

from pathlib import Path

from fperr import data
from fperr.zoo.registry import REGISTRY, Entry, entry


def downloads(name: str) -> tuple[data.Download, ...]:
    """The files that a network of the zoo, with its data set, or a data set needs.

    Args:
        name: Name of a network, as `zoo.REGISTRY` lists them, or of a data set, as `data.DATASETS`
            does.

    Raises:
        ValueError: Nothing has that name.
        MissingDataError: The data set has no address; the message says how to get it.

    Example:
        >>> from fperr import zoo
        >>> [file.relative for file in zoo.downloads("mnist_fastat_pgd")][0]
        'checkpoints/mnist_fastat_pgd.pth'
        >>> zoo.downloads("fashion_standard")
        ()
    """
    if name in REGISTRY:
        network = REGISTRY[name]
        return _weights(network) + data.downloads_of(network.dataset)
    if name in data.DATASETS:
        return data.downloads_of(name)
    known = ", ".join([*REGISTRY, *data.DATASETS])
    raise ValueError(f"unknown network or data set {name!r}: expected one of {known}")


def fetch(name: str, *, progress: bool = False) -> list[Path]:
    """Download what a network of the zoo, or a data set, needs and the data folder lacks.

    Args:
        name: Name of a network or of a data set, as for `downloads`.
        progress: Draw a progress bar for each file.

    Returns:
        The paths of all of its files; none for what is part of fperr.

    Raises:
        ValueError: Nothing has that name.
        MissingDataError: A file has no address or cannot be fetched; the message says how to get
            it.

    Example:
        >>> from fperr import zoo
        >>> zoo.fetch("fashion_saturated")  # packaged
        []
    """
    return [data.downloaded(file, progress=progress) for file in downloads(name)]


def is_at_hand(name: str) -> bool:
    """Whether the weights of a network of the zoo and its data set are there.

    Args:
        name: Name of a network, as `zoo.REGISTRY` lists them.

    Raises:
        ValueError: The zoo has no network of that name.

    Example:
        >>> from fperr import zoo
        >>> zoo.is_at_hand("fashion_standard")
        True
    """
    network = entry(name)
    has_weights = network.checkpoint is None or data.is_at_hand(network.checkpoint)
    return has_weights and data.is_dataset_at_hand(network.dataset)


def _weights(network: Entry) -> tuple[data.Download, ...]:
    if network.checkpoint is None:
        return ()
    assert network.url is not None
    assert network.sha256 is not None
    return (data.Download(network.checkpoint, network.url, network.sha256),)
