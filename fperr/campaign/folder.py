"""The folder of a campaign: its lock, its cells' files, and which of them are finished."""

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fperr.campaign.cell_store import BEGUN, FAILURES, PARTS, CellStore, store_at
from fperr.campaign.cells import Cell
from fperr.campaign.parts import file_name, is_part
from fperr.campaign.spec import Spec
from fperr.errors import DamagedFileWarning
from fperr.run_folder import RunFolder, opened
from fperr.storage import SEAL, is_whole, sealed

SETTINGS_FILE = "campaign.json"
_SIZES_FILE = "sizes.json"


@dataclass(frozen=True, slots=True)
class CampaignFolder:
    """A campaign's folder, and the location of its cells' files.

    Attributes:
        run: The folder with lock and settings.
        store: Files of the cells.
    """

    run: RunFolder
    store: CellStore

    def finished(self, cells: Mapping[str, Cell]) -> set[str]:
        """The cells whose parts are there and whole; each part is read.

        Warns:
            DamagedFileWarning: A part is damaged or of another cell: its cell is not finished.
        """
        return {cell for cell in self._named(PARTS, cells) if self._is_whole(cell)}

    def _is_whole(self, cell: str) -> bool:
        if is_part(self.read_part(cell) or b"", cell):
            return True
        self.distrust(cell)
        return False

    def read_part(self, cell: str) -> bytes | None:
        """The content of a cell's part, empty if it is no regular file; None if it is missing."""
        try:
            return self.store.read(PARTS, file_name(cell))
        except FileNotFoundError:
            return None
        except OSError:
            return b""

    def distrust(self, cell: str) -> None:
        """Warn that a cell's part is damaged, or that of another cell."""
        warnings.warn(
            f"{self.store.location}/{PARTS}/{file_name(cell)} is damaged, or of another cell: it "
            "is not used, and computed again",
            DamagedFileWarning,
            stacklevel=3,
        )

    def foreign(self, cells: Mapping[str, Cell]) -> int:
        """The number of parts of no cell of the spec: of earlier files, options or versions."""
        names = {file_name(cell) for cell in cells}
        return sum(name not in names for name in self.store.names(PARTS))

    def failures(self, cells: Mapping[str, Cell]) -> dict[str, dict[str, Any]]:
        """The recorded failures of cells; a damaged record is none."""
        records = {}
        for cell in self._named(FAILURES, cells, ".json"):
            try:
                content = self.store.read(FAILURES, f"{cell}.json")
            except OSError:
                continue
            if is_whole(content):
                records[cell] = json.loads(content)
        return records

    def record(self, cell: Cell, outcome: Mapping[str, Any]) -> None:
        """Write the record of a failure."""
        record = {"seal": SEAL, "cell": cell.digest, "words": cell.words, **outcome}
        content = sealed(json.dumps(record, indent=1).encode())
        self.store.write(FAILURES, f"{cell.digest}.json", content)

    def forget(self, cell: str) -> None:
        """Remove the record of a failure, if there is one."""
        self.store.remove(FAILURES, f"{cell}.json")

    def executions(self) -> "Counter[str]":
        """How often each cell was begun, in all runs."""
        return Counter(name.partition("-")[0] for name in self.store.names(BEGUN))

    def executions_in(self, session: str, cell: Cell | None = None) -> int:
        """How often a cell, or any cell, was begun in one run."""
        part = f"-{session}-" if cell is None else f"{cell.digest}-{session}-"
        return sum(part in name for name in self.store.names(BEGUN))

    def sizes(self) -> dict[str, int]:
        """The numbers of images of cells that an earlier forecast gave."""
        content = self.run.piece(_SIZES_FILE)
        return {} if content is None else dict(json.loads(content)["sizes"])

    def keep_sizes(self, sizes: Mapping[str, int]) -> None:
        """Keep the numbers of images of cells, so that a resumed campaign has the same cells."""
        content = {"seal": self.run.stamp(_SIZES_FILE), "sizes": dict(sizes)}
        self.run.keep(_SIZES_FILE, sealed(json.dumps(content, indent=1).encode()))

    def _named(self, kind: str, cells: Iterable[str], suffix: str = ".parquet") -> list[str]:
        names = set(self.store.names(kind))
        return [cell for cell in cells if f"{cell}{suffix}" in names]


def store_of(spec: Spec, folder: Path) -> CellStore:
    """The location of a campaign's cells: that of the spec, or else its folder."""
    location = spec.options["storage"]
    if location is None:
        return store_at(folder)
    return store_at(location if "://" in location else spec.folder / location)


@contextmanager
def opened_folder(spec: Spec, folder: Path) -> Iterator[CampaignFolder]:
    """Open the folder of a campaign, and keep it locked inside the block.

    Raises:
        ValueError: The folder holds something else, or another campaign.
        StorageError: Another run is at work in it, or it cannot be written to.
    """
    with opened(folder, SETTINGS_FILE) as run:
        run.begin({"campaign": spec.name})
        store = store_of(spec, folder)
        store.prepare()
        yield CampaignFolder(run, store)
