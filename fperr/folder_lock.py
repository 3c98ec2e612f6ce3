"""A lock on a folder: a file in it that the process at work has locked."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from fperr.errors import StorageError

LOCK_FILE = ".fperr-lock"
_LONGEST_NAME = 300  # bytes of the holder's name that are shown


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Lock a folder until the block is left; the kernel unlocks it if the process is killed.

    Args:
        folder: Folder that exists.
        wait: Whether to wait until another run has left the folder, instead of refusing.

    Raises:
        StorageError: Another run is at work in the folder, or it cannot be written to.
    """
    path = folder / LOCK_FILE
    handle = _lock(path, wait=wait)
    while not _is_at(path, handle):  # whoever held the lock has removed the file in between
        os.close(handle)
        handle = _lock(path, wait=wait)
    try:
        yield
    finally:
        if _is_at(path, handle):
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(handle)


def _lock(path: Path, *, wait: bool) -> int:
    """Open the lock's file, made where it is missing, and lock it.

    Returns:
        The file's handle, which holds the lock until it is closed.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as fault:
        raise StorageError(
            f"{path} cannot be opened for writing ({fault.strerror}): mend that, or give another "
            "folder"
        ) from fault
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as fault:
        holder = _holder(handle)
        os.close(handle)
        raise StorageError(
            f"another run is at work in {path.parent}: wait until it has ended, or give another "
            f"folder{holder}"
        ) from fault
    except BaseException:
        os.close(handle)
        raise
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name, too
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {platform.node()}".encode(), 0)
    return handle


def _holder(handle: int) -> str:
    """Who holds the lock, in words; empty if its file does not say so."""
    name = os.pread(handle, _LONGEST_NAME, 0).decode(errors="replace")
    return f" (it is {name})" if name.isprintable() and name else ""


def _is_at(path: Path, handle: int) -> bool:
    """Whether the path still leads to the open file, and not to another one or to none."""
    try:
        at_path = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    at_handle = os.fstat(handle)
    return (at_path.st_dev, at_path.st_ino) == (at_handle.st_dev, at_handle.st_ino)
