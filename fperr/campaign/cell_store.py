"""Where the files of a campaign's cells lie: in a folder, or at any URL that fsspec knows.

In a folder each file is written whole or not at all. At a URL a cut file may be left, which its
digest tells, and which is written again.
"""

import os
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec

from fperr import storage
from fperr.errors import StorageError

PARTS, FAILURES, BEGUN = "parts", "failures", "begun"
KINDS = (PARTS, FAILURES, BEGUN)


class CellStore(ABC):
    """Files of a campaign, by kind and name.

    Attributes:
        location: The folder's absolute path or the URL, with which a worker opens the same.
    """

    location: str

    @abstractmethod
    def prepare(self) -> None:
        """Make what is missing, and check that files can be written.

        Raises:
            ValueError, StorageError: The location cannot be used.
        """

    @abstractmethod
    def names(self, kind: str) -> list[str]:
        """The names of the files of a kind.

        Raises:
            StorageError: They cannot be listed.
        """

    @abstractmethod
    def read(self, kind: str, name: str) -> bytes:
        """The content of a file.

        Raises:
            OSError: It is missing or no regular file.
            StorageError: The URL does not answer.
        """

    @abstractmethod
    def write(self, kind: str, name: str, content: bytes) -> None:
        """Write a file.

        Raises:
            StorageError: It cannot be written.
        """

    @abstractmethod
    def mark(self, name: str) -> None:
        """Write a small file of the kind `BEGUN`, which may be lost if the power fails.

        Raises:
            StorageError: It cannot be written.
        """

    @abstractmethod
    def remove(self, kind: str, name: str) -> None:
        """Remove a file, if it is there."""


class FolderStore(CellStore):
    """Files in a folder of this machine, or one that machines share.

    Args:
        folder: Path of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.location = os.path.abspath(folder)
        self._folder = Path(self.location)

    def prepare(self) -> None:
        """See `CellStore`."""
        for kind in KINDS:
            storage.prepare(self._folder / kind)

    def names(self, kind: str) -> list[str]:
        """See `CellStore`."""
        path = self._folder / kind
        try:
            return [name for name in os.listdir(path) if not storage.is_leftover(name)]
        except FileNotFoundError:
            return []
        except OSError as fault:
            raise StorageError(
                f"{path} could not be listed ({fault.strerror}): expected a campaign's folder "
                "that you can read. Mend that, and start the same again"
            ) from fault

    def read(self, kind: str, name: str) -> bytes:
        """See `CellStore`."""
        return storage.read(self._folder / kind / name)

    def write(self, kind: str, name: str, content: bytes) -> None:
        """See `CellStore`."""
        storage.write(self._folder / kind / name, content)

    def mark(self, name: str) -> None:
        """See `CellStore`."""
        path = self._folder / BEGUN / name
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        except OSError as fault:
            raise StorageError(
                f"{path} could not be written ({fault.strerror}): expected a campaign's folder "
                "that every worker sees and can write to; mend that, or give storage = a URL"
            ) from fault

    def remove(self, kind: str, name: str) -> None:
        """See `CellStore`."""
        storage.remove(self._folder / kind / name)


class UrlStore(CellStore):
    """Files below a URL.

    Args:
        url: URL of a kind that fsspec knows, as `s3://bucket/folder`.

    Raises:
        ValueError: fsspec does not know that kind of URL, or lacks a package for it.
    """

    def __init__(self, url: str) -> None:
        self.location = url
        try:
            self._system, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as fault:
            raise ValueError(
                f"storage {url} cannot be used: {fault}. Expected a folder, or a URL of fsspec "
                "whose package is installed"
            ) from fault

    def prepare(self) -> None:
        """See `CellStore`."""
        for kind in KINDS:
            self._do(
                f"{self._root}/{kind}", lambda p: self._system.makedirs(p, exist_ok=True), "written"
            )

    def names(self, kind: str) -> list[str]:
        """See `CellStore`."""
        self._system.invalidate_cache()
        path = f"{self._root}/{kind}"
        try:
            listed = self._do(path, lambda p: self._system.ls(p, detail=False), "listed")
        except FileNotFoundError:
            return []
        return [str(found).rstrip("/").rpartition("/")[2] for found in listed]

    def read(self, kind: str, name: str) -> bytes:
        """See `CellStore`."""
        return bytes(self._do(f"{self._root}/{kind}/{name}", self._system.cat_file, "read"))

    def write(self, kind: str, name: str, content: bytes) -> None:
        """See `CellStore`."""
        self._do(
            f"{self._root}/{kind}/{name}", lambda p: self._system.pipe_file(p, content), "written"
        )

    def mark(self, name: str) -> None:
        """See `CellStore`."""
        self.write(BEGUN, name, b"begun\n")

    def remove(self, kind: str, name: str) -> None:
        """See `CellStore`."""
        path = f"{self._root}/{kind}/{name}"
        with suppress(FileNotFoundError):
            self._do(path, self._system.rm_file, "removed")

    def _do(self, path: str, action: Any, done: str) -> Any:
        """What an action on a path returns.

        Raises:
            FileNotFoundError: Nothing is there, and it was not to be written.
            StorageError: It did not work: each file system has errors of its own.
        """
        try:
            return action(path)
        except Exception as fault:
            if isinstance(fault, FileNotFoundError) and done != "written":
                raise
            raise StorageError(
                f"{self._system.unstrip_protocol(path)} could not be {done} "
                f"({type(fault).__name__}: {fault}). What was written before stays: mend that "
                "and start the same again"
            ) from fault


def store_at(location: str | Path) -> CellStore:
    """The store at a path or URL; `file:` is a folder.

    Raises:
        ValueError: The URL cannot be used.

    Example:
        >>> type(store_at("file:///tmp/campaign")).__name__
        'FolderStore'
    """
    text = str(location)
    if text.startswith("file:"):
        return FolderStore(Path(fsspec.core.strip_protocol(text)))
    return UrlStore(text) if "://" in text else FolderStore(Path(text))
