"""The folder of data that belongs to others: where it is, and what it holds."""

import os
from pathlib import Path

import platformdirs

from fperr.errors import MissingDataError


def data_folder() -> Path:
    """The folder that the environment variable FPERR_DATA names, or else the user's own.

    The user's own is where the system keeps the data of programs; on Linux
    `~/.local/share/fperr`, or as XDG_DATA_HOME says.

    Example:
        >>> import os
        >>> from fperr import data
        >>> named = os.environ.get("FPERR_DATA")
        >>> str(data.data_folder()) == named if named else data.data_folder().name == "fperr"
        True
    """
    named = os.environ.get("FPERR_DATA")
    return Path(named) if named else platformdirs.user_data_path("fperr")


def is_at_hand(relative: str) -> bool:
    """Whether the data folder holds a file.

    Args:
        relative: Path of the file, relative to that folder.
    """
    return (data_folder() / relative).is_file()


def fperr_data(relative: str, description: str, fetched_as: str | None = None) -> Path:
    """The path of a file in the data folder.

    Args:
        relative: Path of the file, relative to that folder.
        description: Name and origin of the file, for the error's message.
        fetched_as: Name by which `fperr fetch` gets the file; None where it does not.

    Raises:
        MissingDataError: The file is missing; the message says how to get it.

    Example:
        >>> from fperr import data
        >>> data.fperr_data("no_such_folder/no_such_file", "an example")
        Traceback (most recent call last):
            ...
        fperr.errors.MissingDataError: ...no_such_file is missing: it should hold an example. ...
    """
    path = data_folder() / relative
    if not path.is_file():
        remedy = f"`fperr fetch {fetched_as}` gets it" if fetched_as else "Get it"
        raise MissingDataError(
            f"{path} is missing: it should hold {description}. {remedy}; or set the environment "
            f"variable FPERR_DATA to a folder that holds {relative}"
        )
    return path
