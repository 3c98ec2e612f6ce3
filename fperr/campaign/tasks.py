"""What is sent to a worker: the text of a cell, and nothing that must be unpickled."""

import json

from fperr.campaign.cell_store import CellStore
from fperr.campaign.cells import Cell


def task_of(cell: Cell, store: CellStore, session: str) -> str:
    """A cell as JSON, for `fperr.campaign.worker.execute`.

    Args:
        cell: The cell.
        store: Where its part is written.
        session: Name of this run of the campaign, by which executions are counted.
    """
    options = cell.model.options
    return json.dumps(
        {
            "cell": cell.digest,
            "identity": cell.identity,
            "model": {
                name: options[name] for name in ("source", "checkpoint", "logits", "data", "images")
            },
            "store": store.location,
            "session": session,
        }
    )
