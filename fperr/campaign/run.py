"""Runs the cells of a campaign that are not finished, a bounded number of them at a time."""

import contextlib
import json
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from distributed import Client, Future, KilledWorker, wait
from distributed.client import ClosedClientError

from fperr.campaign.cell_store import PARTS
from fperr.campaign.cells import Cell
from fperr.campaign.cluster import TRIES_ELSEWHERE, UNREACHED, retire_others
from fperr.campaign.folder import CampaignFolder
from fperr.campaign.parts import file_name, is_part
from fperr.campaign.tally import Advance, Tally
from fperr.campaign.tasks import task_of
from fperr.campaign.worker import execute
from fperr.errors import FperrError, StorageError

_AHEAD = 2  # cells for each thread that the scheduler has: one runs, one waits
_LOOK = 5.0  # seconds between looks at the workers while nothing ends


def run_cells(
    client: Client,
    folder: CampaignFolder,
    cells: Iterable[Cell],
    advance: Advance,
    notify: Callable[[str], object],
) -> Tally:
    """Run cells; what is finished is written by the workers as it goes.

    Args:
        client: Client of the workers.
        folder: Locked folder of the campaign.
        cells: Cells to run, those of a model together.
        advance: Called with the tally whenever a cell has ended, and every few seconds.
        notify: Called with sentences about workers.

    Returns:
        What was done. Cells that raise, or whose workers die again and again, are recorded.

    Raises:
        StorageError: A part could not be written, or the workers write elsewhere.
        FperrError: The scheduler is gone, or all workers are refused.
    """
    return _Loop(client, folder, deque(cells), advance, notify).run()


class _Loop:
    def __init__(
        self,
        client: Client,
        folder: CampaignFolder,
        queue: "deque[Cell]",
        advance: Advance,
        notify: Callable[[str], object],
    ) -> None:
        self._client, self._folder, self._queue = client, folder, queue
        self._advance, self._notify = advance, notify
        self._session = uuid.uuid4().hex[:12]
        self._window: dict[Future[Any], Cell] = {}
        self._deaths: Counter[str] = Counter()
        self._has_told = False
        self.tally = Tally(len(queue))

    def run(self) -> Tally:
        try:
            while self._queue or self._window:
                self._fill()
                for future in self._ended():
                    self._take(future)
            return self.tally
        finally:
            if self._window and self._client.status == "running":
                with contextlib.suppress(*UNREACHED):  # what went wrong before is told
                    self._client.cancel(list(self._window))
            self.tally.begun = self._folder.executions_in(self._session)

    @contextlib.contextmanager
    def _reaching_scheduler(self) -> Iterator[None]:
        """Around what is said to the scheduler: it may die at any moment."""
        try:
            yield
        except UNREACHED as fault:
            raise FperrError(
                "the scheduler has gone. The cells that were finished in this run are kept, "
                f"{self.tally.finished} of {self.tally.total}: start a scheduler, and the same "
                "again"
            ) from fault

    def _threads(self) -> int:
        """Number of threads of the workers that are there."""
        with self._reaching_scheduler():
            return sum(self._client.nthreads().values())

    def _fill(self) -> None:
        """Submit cells, as many as workers can begin soon."""
        room = _AHEAD * max(1, self._threads()) - len(self._window)
        for _ in range(min(room, len(self._queue))):
            cell = self._queue.popleft()
            self._submit(cell)

    def _submit(self, cell: Cell) -> None:
        key = f"cell-{cell.digest}-{uuid.uuid4().hex[:8]}"
        task = task_of(cell, self._folder.store, self._session)
        with self._reaching_scheduler():
            self._window[self._client.submit(execute, task, key=key, pure=False)] = cell

    def _ended(self) -> Iterable[Future[Any]]:
        """The cells that have ended, at least one, or none after some seconds."""
        window = list(self._window)
        with self._reaching_scheduler():
            try:
                return list(wait(window, timeout=_LOOK, return_when="FIRST_COMPLETED").done)
            except TimeoutError:  # nothing has ended
                if self._client.status != "running":
                    raise
            except ValueError as fault:  # no client is open: Dask has closed ours
                raise ClosedClientError(str(fault)) from fault
        self._look()
        self._advance(self.tally)
        return []

    def _look(self) -> None:
        """Say once that there is no worker."""
        if self._threads():
            self._has_told = False
        elif not self._has_told:
            self._notify(
                "no worker is there now: waiting for one (Ctrl-C ends; what is finished stays)"
            )
            self._has_told = True

    def _take(self, future: Future[Any]) -> None:
        """Take a cell that has ended, well or not."""
        cell = self._window.pop(future)
        with self._reaching_scheduler():
            fault = future.exception() if future.status == "error" else None
            answer = None if fault is not None else future.result()  # raises if it was cancelled
        if answer is None:
            self._died(cell, fault)
        else:
            self._settle(cell, json.loads(answer))
        self._advance(self.tally)

    def _settle(self, cell: Cell, outcome: Mapping[str, Any]) -> None:
        if "refused" in outcome:
            self._refuse(cell, outcome)
        elif "unwritten" in outcome:
            raise StorageError(
                f"{cell.words}, on worker {outcome['worker']}: {outcome['unwritten']}"
            )
        elif "failed" in outcome:
            self._fail(cell, outcome)
        else:
            self._finish(cell, outcome)

    def _finish(self, cell: Cell, outcome: Mapping[str, Any]) -> None:
        if not is_part(self._folder.read_part(cell.digest) or b"", cell.digest):
            raise StorageError(
                f"worker {outcome['worker']} has written {PARTS}/{file_name(cell.digest)}, which "
                f"is not in {self._folder.store.location} here: give a folder that all machines "
                "share, or storage = a URL"
            )
        self.tally.finished += 1
        self.tally.seconds += outcome["seconds"]
        self._folder.forget(cell.digest)

    def _fail(self, cell: Cell, outcome: Mapping[str, Any]) -> None:
        self.tally.failed += 1
        self._folder.record(
            cell,
            {
                "error": outcome["error"],
                "traceback": outcome["failed"],
                "worker": outcome["worker"],
                "executions": self._folder.executions_in(self._session, cell),
            },
        )

    def _died(self, cell: Cell, fault: BaseException | None) -> None:
        """The workers of a cell have died, or Dask could not run it at all."""
        if not isinstance(fault, KilledWorker):
            text = f"{type(fault).__name__}: {fault}"
            self._fail(cell, {"error": text, "failed": text, "worker": "unknown"})
            return
        self._deaths[cell.digest] += 1
        begun = self._folder.executions_in(self._session, cell)
        # Dask blames every cell that waited on a worker that died; only those that ran are to blame
        if begun <= TRIES_ELSEWHERE and self._deaths[cell.digest] <= TRIES_ELSEWHERE:
            self._submit(cell)
            return
        text = (
            f"its worker died, {begun} times out of {begun}: killed, crashed, or out of memory "
            "(more for each worker: --memory; fewer images in a cell: batch_size)"
        )
        last = getattr(fault, "last_worker", None)
        name = str(getattr(last, "address", "unknown"))
        self._fail(cell, {"error": text, "failed": text, "worker": name})

    def _refuse(self, cell: Cell, outcome: Mapping[str, Any]) -> None:
        """A worker that came later has other versions: it is sent away, and the cell to another."""
        words = f"worker {outcome['worker']} has another version: {outcome['refused']}"
        self.tally.refused.append(words)
        self._notify(f"{words}: it is refused")
        with self._reaching_scheduler():
            retire_others(self._client)
        if not self._threads():
            raise FperrError(f"{words}: no other worker is left. Start workers with these versions")
        self._submit(cell)
