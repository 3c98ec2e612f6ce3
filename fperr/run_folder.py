"""Run folders: a locked folder of settings and numbered pieces, in which a later run goes on."""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fperr import storage
from fperr.errors import DamagedFileWarning, StorageError
from fperr.folder_lock import LOCK_FILE, locked
from fperr.storage import SEAL, is_whole, read, sealed, write

_RESULTS = "results.json"
_LAYOUT = 1
_LONGEST_TEXT = 60  # letters of a setting or of names in a message


@contextlib.contextmanager
def opened(
    folder: str | Path,
    settings_file: str,
    *,
    remedy: str = "give another folder",
    overwrite: Sequence[str] | None = None,
    wait: bool = False,
) -> Iterator["RunFolder"]:
    """Open a run folder, and keep it locked inside the block.

    The kernel releases the lock if the process is killed.

    Args:
        folder: Folder that is new, empty, or of a run of the same kind.
        settings_file: Name of the file with the settings, e.g. `attack.json`.
        remedy: Remedy that error messages suggest where the folder cannot be used.
        overwrite: Names of files and folders of the earlier run to remove, to begin anew; None to
            go on with that run. Other files in the folder stay.
        wait: Whether to wait until another run in the folder has ended, instead of refusing.

    Raises:
        ValueError: The folder cannot be made, or holds something else.
        StorageError: Another run is at work in the folder, or it cannot be written to.
    """
    path = Path(folder)
    new_folders = storage.make_folder(path)
    try:
        with locked(path, wait=wait):
            storage.remove_leftovers(path, of_running_too=True)
            storage.check_writable(path)
            run = RunFolder(path, settings_file, remedy)
            if overwrite is not None:
                run.clear(overwrite)
            run.load(is_new=overwrite is not None)
            yield run
    finally:
        storage.remove_empty(new_folders)


@dataclass(slots=True)
class RunFolder:
    """A folder of settings and numbered pieces; see `opened`.

    Attributes:
        path: Path of the folder.
        settings_file: Name of the file with the settings.
        remedy: Remedy that error messages suggest where the folder cannot be used.
        settings: Settings with which the run was begun; None if the folder is new.
        states: Inode, size and time of each piece, as it was written or read.
    """

    path: Path
    settings_file: str
    remedy: str
    settings: dict[str, Any] | None = None
    states: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of the run, e.g. `attack`."""
        return Path(self.settings_file).stem

    def load(self, *, is_new: bool) -> None:
        """Read the settings.

        Args:
            is_new: Whether other files may lie in the folder.

        Raises:
            ValueError: The settings are damaged, or the folder holds something else.
        """
        try:
            content = read(self.path / self.settings_file)
        except FileNotFoundError:
            content = None
        except OSError as fault:  # a symbolic link, a folder
            raise ValueError(
                f"{self.path / self.settings_file} cannot be read as a file ({fault.strerror}): "
                f"{self.remedy}, or remove it"
            ) from fault
        if content is None:
            own_files = (LOCK_FILE, self.settings_file)
            foreign_files = [
                n
                for n in os.listdir(self.path)
                if n not in own_files and not storage.is_leftover(n)
            ]
            if foreign_files and not is_new:
                raise ValueError(
                    f"{self.path} is not empty: it holds something else than this {self.kind} "
                    f"({_short(', '.join(sorted(foreign_files)))}, and no {self.settings_file}): "
                    f"{self.remedy}"
                )
            return
        stored = _object(content) if is_whole(content) else {}
        if stored.get("layout") != _LAYOUT or not isinstance(stored.get("settings"), dict):
            raise ValueError(
                f"{self.path / self.settings_file} is damaged (its digest is not that of its "
                f"content), or another version of fperr wrote it: {self.remedy}, or remove it"
            )
        self.settings = stored["settings"]

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of a new run, or compare them with those of the run to go on with.

        Raises:
            ValueError: The settings differ; the message names those that do.
        """
        new_settings: dict[str, Any] = json.loads(json.dumps(settings))
        if self.settings is None:
            content = {"seal": SEAL, "layout": _LAYOUT, "settings": new_settings}
            write(self.path / self.settings_file, sealed(json.dumps(content, indent=1).encode()))
            self.settings = new_settings
            return
        different = differences(self.settings, new_settings)
        if different:
            raise ValueError(
                f"{self.path} holds another {self.kind} ({'; '.join(different)}): {self.remedy}, "
                "or remove it"
            )

    def stamp(self, name: str) -> str:
        """The text that a piece must hold: room for its digest, and the names of run and piece."""
        return f"{SEAL}{self._piece_id(name)}"

    def keep(self, name: str, content: bytes) -> None:
        """Write a piece.

        Args:
            name: Name of the piece's file.
            content: Sealed content, which holds the piece's stamp.
        """
        write(self.path / name, content)
        self.states[name] = self._state(name)

    def piece(self, name: str) -> bytes | None:
        """Read a piece; None if it is missing or damaged, and a warning names a damaged one."""
        content = self._content(name)
        if content is None:
            return None
        if not is_whole(content) or self._piece_id(name).encode() not in content:
            self.distrust(name)
            return None
        self.states[name] = self._state(name)
        return content

    def distrust(self, name: str) -> None:
        """Warn that a piece is damaged or of another run."""
        self.states.pop(name, None)
        warnings.warn(
            f"{self.path / name} is damaged, or of another run: it is not used, and computed again",
            DamagedFileWarning,
            stacklevel=3,
        )

    def drop(self, name: str) -> None:
        """Remove a piece that another piece replaces."""
        self.states.pop(name, None)
        storage.remove(self.path / name)

    def check(self) -> None:
        """Check that every piece that was written or read is still there, unchanged.

        Raises:
            StorageError: A piece is missing or was changed.
        """
        gone = [name for name, state in self.states.items() if self._state(name) != state]
        if not self._exists(self.settings_file):
            gone.append(self.settings_file)
        if gone:
            raise StorageError(
                f"{self.path} was changed while this run wrote to it: {_short(', '.join(gone))} "
                "of it are gone, or not what was written. Start the same again: what is missing "
                "is computed again"
            )

    def publish(self, name: str, content: bytes) -> None:
        """Write a result, and its digest to the manifest; warn if the old result was changed."""
        manifest = self._content(_RESULTS)
        digests = _object(manifest).get("digests", {}) if manifest and is_whole(manifest) else {}
        if manifest is not None and not digests:
            self.distrust(_RESULTS)
        present = self._content(name) if name in digests else None
        if present is not None and hashlib.sha256(present).hexdigest() != digests[name]:
            warnings.warn(
                f"{self.path / name} was changed since it was written: it is written again",
                DamagedFileWarning,
                stacklevel=2,
            )
        write(self.path / name, content)
        digests = {**digests, name: hashlib.sha256(content).hexdigest()}
        new_manifest = json.dumps({"seal": SEAL, "digests": digests}, indent=1)
        write(self.path / _RESULTS, sealed(new_manifest.encode()))

    def clear(self, names: Sequence[str]) -> None:
        """Remove settings and results of an earlier run.

        Folders are removed only if there are settings: without them they may not be fperr's.
        """
        has_settings = os.path.lexists(self.path / self.settings_file)
        for name in (*names, _RESULTS, self.settings_file):
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                if has_settings:
                    shutil.rmtree(path)
            else:
                storage.remove(path)

    def _piece_id(self, name: str) -> str:
        return f" run {_digest(self.settings)} piece {name};"

    def _exists(self, name: str) -> bool:
        """Whether a file of that name is in the folder."""
        return self._state(name) != (0, 0, 0)

    def _state(self, name: str) -> tuple[int, int, int]:
        """Inode, size and time of a file; zeros if it is missing."""
        try:
            status = os.lstat(self.path / name)
        except OSError:
            return 0, 0, 0
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _content(self, name: str) -> bytes | None:
        """Read a file; None if it is missing, or not a regular file, of which a warning says so."""
        try:
            return read(self.path / name)
        except FileNotFoundError:
            return None
        except OSError:
            self.distrust(name)
            return None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe the settings that differ; the name of a group precedes those of its settings."""
    old_values, new_values = dict(_flat(old)), dict(_flat(new))
    absent = "absent"
    return [
        f"{name} {_short(str(old_values.get(name, absent)))} there, "
        f"{_short(str(new_values.get(name, absent)))} here"
        for name in sorted(old_values.keys() | new_values.keys())
        if old_values.get(name, absent) != new_values.get(name, absent)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of all groups, with the groups' names before theirs."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."


def _digest(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _object(content: bytes) -> dict[str, Any]:
    value = json.loads(content)
    return value if isinstance(value, dict) else {}
