"""Which files of known networks and data sets are at hand."""

from fperr import data, zoo


def state_of_weights(entry: zoo.Entry) -> str:
    """Whether a network's weights are there: `packaged`, `found`, or `missing`."""
    if entry.checkpoint is None:
        return "packaged"
    return _found(data.is_at_hand(entry.checkpoint))


def networks() -> dict[str, str]:
    """Network of the zoo -> state of its weights."""
    return {entry.name: state_of_weights(entry) for entry in zoo.REGISTRY.values()}


def datasets() -> dict[str, str]:
    """Data set -> state of its files; Fashion-MNIST's whole sets are those of Debian's package."""
    states = {
        name: "packaged" if name == "fashion_mnist_1000" else _found(data.is_dataset_at_hand(name))
        for name in data.DATASETS
    }
    has_whole = (data.FASHION_FOLDER / "t10k-images-idx3-ubyte.gz").is_file()
    return states | {str(data.FASHION_FOLDER): _found(has_whole)}


def _found(is_there: bool) -> str:
    return "found" if is_there else "missing"
