"""Files of others that can be downloaded: address, digest, and place in the data folder.

Nothing is downloaded unless `fetch` is called.
"""

from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from fperr.data.folder import data_folder
from fperr.errors import MissingDataError


@dataclass(frozen=True, slots=True)
class Download:
    """A published file.

    Attributes:
        relative: Path of the file, relative to the data folder.
        url: Address of the file.
        sha256: SHA-256 of the file, which decides whether it is the published one.

    Example:
        >>> from fperr import data
        >>> data.Download("mnist/t10k-labels-idx1-ubyte.gz", "https://example.org/labels", "f7ae")
        Download(relative='mnist/t10k-labels-idx1-ubyte.gz', ...)
    """

    relative: str
    url: str
    sha256: str


def downloaded(file: Download, *, progress: bool = False) -> Path:
    """The path of a published file in the data folder; it is downloaded if it is not there.

    A file whose digest is wrong is downloaded again; what comes with a wrong digest is not kept.

    Args:
        file: The file.
        progress: Draw a progress bar.

    Raises:
        MissingDataError: The address cannot be reached, or another file is there now.

    Example:
        >>> from fperr import data, errors
        >>> nowhere = data.Download("no_such_file", "http://localhost:9/no_such_file", "0" * 64)
        >>> try:
        ...     data.downloaded(nowhere)
        ... except errors.MissingDataError as error:
        ...     print(str(error)[:60])
        http://localhost:9/no_such_file could not be fetched (Connec
    """
    path = data_folder() / file.relative
    by_hand = f"Get it by hand, and put it at {path}"
    try:
        pooch.retrieve(
            file.url, f"sha256:{file.sha256}", fname=path.name, path=path.parent,
            progressbar=progress,
        )  # fmt: skip
    except requests.RequestException as fault:
        if fault.response is not None:
            fault.response.close()  # pooch leaves its connection open
        raise MissingDataError(
            f"{file.url} could not be fetched ({type(fault).__name__}): is there a network? "
            f"{by_hand}"
        ) from fault
    except ValueError as fault:  # pooch's word for a wrong digest
        raise MissingDataError(
            f"{file.url} no longer holds the published file: its SHA-256 is not {file.sha256}. "
            f"{by_hand}"
        ) from fault
    return path
