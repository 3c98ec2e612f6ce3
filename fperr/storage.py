"""Files that are whole or not there, and that say themselves whether a byte of them has changed.

A file is written under another name in its folder, flushed to the disk and renamed, so that a kill
or a full disk leaves the old one or the new one, and never a part. Its digest lies inside it (the
seal), not beside it: the two cannot fall out of step, and every format that can hold a text can
hold it. The digest covers every byte of the file, with zeros in its own place.
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
SEAL = _MARK + 64 * "0"  # what a content must hold, once, to be sealed
_SEAL = re.compile(rf"{_MARK}([0-9a-f]{{64}})".encode())
_PARTIAL = re.compile(r"\.fperr-(\d+)-[0-9a-f]+\.partial")
_OLDER_PARTIAL = re.compile(r"(attack\.json|trace|\d{6,7})\.partial")  # up to version 0.7


def sealed(content: bytes) -> bytes:
    """The content with its digest in the place of `SEAL`.

    Raises:
        ValueError: it does not hold that text exactly once.
    """
    count = content.count(SEAL.encode())
    if count != 1 or len(_SEAL.findall(content)) != 1:
        raise ValueError(f"expected the text {SEAL!r} once in what is sealed, got it {count} times")
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(SEAL.encode(), f"{_MARK}{digest}".encode())


def is_sealed(content: bytes) -> bool:
    """Whether there is a digest in it at all."""
    return _SEAL.search(content) is not None


def is_whole(content: bytes) -> bool:
    """Whether a sealed content is as it was: every byte of it."""
    seals = _SEAL.findall(content)
    if len(seals) != 1:
        return False
    blank = content.replace(_MARK.encode() + seals[0], SEAL.encode())
    return hashlib.sha256(blank).hexdigest() == str(seals[0], "ascii")


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a symbolic link of that name is replaced, not followed.

    Raises:
        StorageError: the disk is full, the folder has gone, ...; nothing of the content stays.
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
        StorageError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as fault:
        raise StorageError(
            f"{path} cannot be removed ({fault.strerror}): mend that, or give another folder"
        ) from fault


def read(path: Path) -> bytes:
    """The content of a file that is one.

    Raises:
        OSError: it is missing, a symbolic link, or no file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        return file.read()


def prepare(folder: Path) -> None:
    """Make a folder and write a small file in it, before there is anything to lose.

    Args:
        folder: it may be a symbolic link to a folder, because who names it means what it leads to;
            what lies in it may not.

    Raises:
        ValueError: it cannot be a folder.
        StorageError: nothing can be written in it.
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
    """The same, and where nothing comes to lie in the folder, it is removed again if it was made.

    Raises:
        ValueError, StorageError: as `prepare`.
    """
    new_folders = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    prepare(folder)
    try:
        yield
    finally:
        remove_empty(new_folders)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder.

    Returns:
        Those that were missing, the innermost first.

    Raises:
        ValueError: it cannot be a folder.
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
    """Write a small file and remove it.

    Raises:
        StorageError: that does not work.
    """
    path = folder / _partial_name()
    write(path, b"fperr\n")
    path.unlink(missing_ok=True)


def file_name(text: str) -> str:
    """A text as the name of a file: letters, digits, and a few signs; it leads nowhere else."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", text)[:80].strip("-") or "unnamed"


def is_leftover(name: str) -> bool:
    """Whether a file of this name is a temporary one: of a killed run, or of one at work."""
    return bool(_PARTIAL.fullmatch(name) or _OLDER_PARTIAL.fullmatch(name))


def remove_leftovers(folder: Path, *, of_running_too: bool) -> None:
    """Temporary files of killed runs; with the lock held, no other run can be writing one."""
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
    """Remove those of the folders in which there is nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):  # something is in it
            folder.rmdir()


def _flush_folder(folder: Path) -> None:
    """Put the new name on the disk, where the file system can do that for folders."""
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
