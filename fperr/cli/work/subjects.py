"""The network and images of a command, and the folder that it writes to."""

import os
from functools import partial
from pathlib import Path

import typer

from fperr.networks import subjects
from fperr.networks.subjects import Subject as Subject

subject_of = partial(subjects.subject_of, notify=typer.echo)


def check_folder(folder: Path, *, overwrite: bool, option: str = "--out") -> None:
    """Refuse a folder that cannot be written to, or that is not empty.

    Args:
        folder: Folder to write to, which may be missing.
        overwrite: Whether the folder may hold files.
        option: Option of the command line that names the folder.

    Raises:
        ValueError: The folder cannot be used.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give {option} a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(
            f"{folder} is not empty: give another folder with --out, or write into it with "
            "--overwrite"
        )
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(
            f"{folder} cannot be made, {existing} is no folder that can be written to: "
            f"give another folder with {option}"
        )
