"""Files that are written whole or not at all, and that hold their own digest.

A file is written under another name in its folder, flushed to the disk and renamed, so that a kill
or a full disk leaves the old file or the new one, and never a part. The digest (the seal) is inside
the file, not beside it: the two cannot get out of step, and every format that can hold text can
hold it. The digest covers every byte of the file, with zeros in place of the digest itself.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from fperr.errors import StorageError

_MARK = "fperr-sha256:"
SEAL = _MARK + 64 * "0"  # a content must hold this text exactly once to be sealed
_SEAL = re.compile(rf"{_MARK}([0-9a-f]{{64}})".encode())
_PARTIAL = re.compile(r"\.fperr-(\d+)-[0-9a-f]+\.partial")
_OLDER_PARTIAL = re.compile(r"(attack\.json|trace|\d{6,7})\.partial")  # up to version 0.7


def sealed(content: bytes) -> bytes:
    """The content with its digest in place of `SEAL`.

    Raises:
        ValueError: The content does not hold `SEAL` exactly once.

    Example:
        >>> is_whole(sealed(SEAL.encode() + b" and numbers"))
        True
    """
    count = content.count(SEAL.encode())
    if count != 1 or len(_SEAL.findall(content)) != 1:
        raise ValueError(f"expected the text {SEAL!r} once in what is sealed, got it {count} times")
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(SEAL.encode(), f"{_MARK}{digest}".encode())


def is_sealed(content: bytes) -> bool:
    """Whether the content holds a digest, right or wrong."""
    return _SEAL.search(content) is not None


def is_whole(content: bytes) -> bool:
    """Whether the content is sealed, and every byte as it was at that time."""
    seals = _SEAL.findall(content)
    if len(seals) != 1:
        return False
    blank = content.replace(_MARK.encode() + seals[0], SEAL.encode())
    return hashlib.sha256(blank).hexdigest() == str(seals[0], "ascii")


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a symbolic link of that name is replaced, not followed.

    Raises:
        StorageError: The file cannot be written, e.g. to a full disk; no part of it stays.
    """
    temporary = path.with_name(_partial_name())
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _flush_folder(path.parent)
    except OSError as fault:
        raise StorageError(
            f"{path} could not be written ({len(content):,} bytes): {fault.strerror or fault}. "
            "What was written before is whole: make room or mend the folder and start the same "
            "again, or give another folder"
        ) from fault


def remove(path: Path) -> None:
    """Remove a file, if it is there; a symbolic link is removed, not followed.

    Raises:
        StorageError: The file cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as fault:
        raise StorageError(
            f"{path} cannot be removed ({fault.strerror}): mend that, or give another folder"
        ) from fault


def read(path: Path) -> bytes:
    """Read a regular file.

    Raises:
        OSError: The file is missing, a symbolic link, or not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        return file.read()


def prepare(folder: Path) -> None:
    """Make a folder, and check that files can be written to it, before anything is computed.

    Args:
        folder: Path of the folder, or of a symbolic link to it. (The files in it must not be
            symbolic links.)

    Raises:
        ValueError: The path cannot be a folder.
        StorageError: No file can be written to the folder.
    """
    new_folders = make_folder(folder)
    try:
        check_writable(folder)
        remove_leftovers(folder, of_running_too=False)
    except BaseException:
        remove_empty(new_folders)
        raise


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[None]:
    """Prepare a folder for a block, and remove it afterwards if it is new and still empty.

    Raises:
        ValueError, StorageError: The folder cannot be used, as in `prepare`.
    """
    new_folders = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    prepare(folder)
    try:
        yield
    finally:
        remove_empty(new_folders)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents.

    Returns:
        The folders that were missing, the innermost first.

    Raises:
        ValueError: The path cannot be a folder.
    """
    if os.path.islink(folder) and not os.path.exists(folder):
        raise ValueError(
            f"{folder} is a symbolic link to {os.readlink(folder)}, which is missing: make that "
            "folder, or give another one"
        )
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"{folder} is a file: give a folder")
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as fault:
        raise ValueError(
            f"{folder} cannot be made ({getattr(fault, 'strerror', None) or fault}): give another "
            "folder, or mend that"
        ) from fault
    return missing


def check_writable(folder: Path) -> None:
    """Check that files can be written to a folder, by writing a small one and removing it.

    Raises:
        StorageError: The file cannot be written.
    """
    path = folder / _partial_name()
    write(path, b"fperr\n")
    path.unlink(missing_ok=True)


def file_name(text: str) -> str:
    """A name for a file, from any text: letters, digits, `_`, `+` and `-`, so no path."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", text)[:80].strip("-") or "unnamed"


def is_leftover(name: str) -> bool:
    """Whether a name is that of a temporary file, of a killed run or of one at work."""
    return bool(_PARTIAL.fullmatch(name) or _OLDER_PARTIAL.fullmatch(name))


def remove_leftovers(folder: Path, *, of_running_too: bool) -> None:
    """Remove the temporary files of killed runs.

    Args:
        folder: Folder of the files.
        of_running_too: Whether to remove those of running processes, too. The caller must hold the
            folder's lock: then no run can be writing them.
    """
    for name in os.listdir(folder):
        match = _PARTIAL.fullmatch(name)
        is_dead = match is not None and not _is_running(int(match[1]))
        if is_dead or (of_running_too and is_leftover(name)):
            with contextlib.suppress(OSError):
                os.unlink(folder / name)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):  # something is in it
            folder.rmdir()


def _flush_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, if the file system can do so."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _partial_name() -> str:
    return f".fperr-{os.getpid()}-{secrets.token_hex(8)}.partial"
