"""`python -m tests.makers.notebooks`: executes the notebooks in place, at their small size."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def kernels() -> dict[str, str]:
    """What decides which kernels this process runs, and so the last digits of its numbers."""
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.split("+")[0],
    }


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook after a run of all its cells, without what changes from run to run."""
    notebook = nbformat.read(path, as_version=4)
    # neither the caller's size nor data of others: networks and images of the package only
    left_out = ("FPERR_NOTEBOOK_SIZE", "FPERR_DATA")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    environment["PYTHONWARNINGS"] = "ignore:IProgress not found"  # no bars, so no widgets either
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,  # where a stream is cut depends on the clock
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment)
    return cleaned(notebook)


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with its kernel's name, the kernels that its numbers come from, and no more."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": notebook.metadata["kernelspec"],
            "language_info": {"name": "python"},
            "fperr": kernels(),
        }
    )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


def main() -> None:
    """Execute the notebooks whose names begin as the arguments do, or all."""
    for path in NOTEBOOKS:
        if path.name.startswith(tuple(sys.argv[1:]) or ""):
            nbformat.write(executed(path), path)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
