"""Labelled images by name: packaged ones, and data sets that are on this machine.

Example:
    >>> from fperr import data
    >>> images = data.fashion_mnist_1000().first(4)
    >>> tuple(images.x.shape), tuple(images.y.shape)
    ((4, 1, 28, 28), (4,))
"""

from fperr.data.archives import classes_from_npz, from_npz
from fperr.data.downloads import Download, downloaded
from fperr.data.folder import data_folder, fperr_data
from fperr.data.folder import is_at_hand as is_at_hand
from fperr.data.from_torch import from_dataset
from fperr.data.images import Images, digest
from fperr.data.named import DATASETS, downloads_of, images_named, is_dataset_at_hand
from fperr.data.originals import from_file
from fperr.data.published import (
    FASHION_FOLDER as FASHION_FOLDER,
)
from fperr.data.published import (
    cifar10_test_800,
    fashion_mnist,
    fashion_mnist_1000,
    mnist_test,
)

__all__ = [
    "DATASETS",
    "Download",
    "Images",
    "cifar10_test_800",
    "classes_from_npz",
    "data_folder",
    "digest",
    "downloaded",
    "downloads_of",
    "fashion_mnist",
    "fashion_mnist_1000",
    "fperr_data",
    "from_dataset",
    "from_file",
    "from_npz",
    "images_named",
    "is_dataset_at_hand",
    "mnist_test",
]
