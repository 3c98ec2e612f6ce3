"""The work of `fperr zoo`."""

import pandas as pd

from fperr import zoo
from fperr.cli.work.files import state_of_weights
from fperr.cli.work.terminal import print_table


def zoo_command() -> None:
    """List the networks that the other commands know by name, and whether they are at hand."""
    rows = [
        (entry.name, entry.dataset, state_of_weights(entry), entry.source)
        for entry in zoo.REGISTRY.values()
    ]
    print_table(pd.DataFrame(rows, columns=["network", "data", "weights", "source of the weights"]))
