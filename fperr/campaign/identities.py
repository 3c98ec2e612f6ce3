"""What a model is, as far as results depend on it: digests of its files, and versions.

Nothing of the model is run for this. Two models of equal files are one model, whatever they are
called and wherever they lie.
"""

import hashlib
import importlib.metadata
import os
from collections.abc import Mapping
from importlib import resources
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import torch

from fperr import __version__, data, zoo
from fperr.errors import MissingDataError

_PIECE = 1 << 20  # bytes that are read at once


def versions() -> dict[str, str]:
    """The versions on which results depend: fperr's and torch's."""
    return {"fperr": __version__, "torch": torch.__version__}


def identity_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a model, ready for JSON.

    Args:
        options: Values of a model's keys, see `fperr.campaign.spec.MODEL_KEYS`.

    Raises:
        MissingDataError: A file is missing; says which, and where it can be had if the spec says
            so.
        ValueError: A package is not installed.
    """
    source = str(options["source"])
    files = {"checkpoint": options["checkpoint"]} if options["checkpoint"] else {}
    if ":" not in source:
        return {"source": source, "weights": _weights_of(source)}
    digests = {name: _file_digest(Path(path)) for name, path in files.items()}
    kind, _, rest = source.partition(":")
    module, _, factory = source.rpartition(":")
    if module.endswith(".py"):
        code = code_digests(Path(module))
        return {
            "source": f"{Path(module).name}:{factory}",
            "code": code,
            "logits": options["logits"],
            **digests,
        }
    if kind == "hf":
        folder = Path(rest)
        if not folder.is_dir():
            raise MissingDataError(f"{folder} is missing: expected the folder of a network")
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        digests |= {name: _file_digest(folder / name) for name in names}
        return {"source": f"hf:{folder.name}", "package": _version("transformers"), **digests}
    return {"source": source, "package": _version(kind), **digests}


def code_digests(module: Path) -> dict[str, str]:
    """The digests of a module and of all modules that it imports from its own folder.

    Args:
        module: Path of the Python file. It is read, and not run.

    Returns:
        SHA-256 by path, relative to the module's folder.

    Raises:
        MissingDataError: There is no such file.
        ValueError: It is no Python.
    """
    if not module.is_file():
        raise MissingDataError(f"{module} is missing: expected a Python file")
    folder = module.resolve().parent
    finder = ModuleFinder(path=[str(folder)])
    try:
        finder.run_script(str(module.resolve()))
    except SyntaxError as fault:
        raise ValueError(f"{module} is no Python: {fault}") from fault
    paths = (getattr(imported, "__file__", None) for imported in finder.modules.values())
    files = {Path(path) for path in paths if path is not None}
    return {os.path.relpath(file, folder): _file_digest(file) for file in sorted(files)}


def code_files(source: str) -> list[Path]:
    """The absolute paths of the files of `code_digests` of `module.py:factory`; else none."""
    module = Path(source.rpartition(":")[0])
    if module.suffix != ".py":
        return []
    folder = module.resolve().parent
    return [(folder / name).resolve() for name in code_digests(module)]


def _weights_of(name: str) -> str:
    entry = zoo.entry(name)
    if entry.checkpoint is not None:
        # raises, with the remedy, where it is missing
        return _file_digest(data.fperr_data(entry.checkpoint, entry.source, name))
    packaged = resources.files("fperr.zoo") / "weights" / f"{name}.safetensors"
    with resources.as_file(packaged) as path:
        return _file_digest(path)


def _file_digest(path: Path) -> str:
    sha = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                sha.update(piece)
    except OSError as fault:
        raise MissingDataError(
            f"{path} is missing or cannot be read ({fault.strerror}): expected a file of the model"
        ) from fault
    return sha.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"{package} is not installed: `pip install {package}`") from None
