"""A user's own network from the command line: `path/to/module.py:factory` and a checkpoint."""

import hashlib
import importlib.util
import inspect
import pickle
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def load(source: str, checkpoint: Path | None = None) -> nn.Module:
    """The model that a factory makes, with the weights of a checkpoint, in evaluation mode.

    Args:
        source: `path/to/module.py:factory`; the module is executed, the factory called without
            arguments.
        checkpoint: a state_dict as `torch.save` or safetensors write it, or a file that holds one
            under `state_dict` or `model_state_dict`; never unpickled.

    Raises:
        ValueError: either cannot be used; says what was expected and what was got.
    """
    path, _, name = source.rpartition(":")
    if not path:
        raise ValueError(f"{source} names no function: expected e.g. {source}:build")
    model = _call(attribute(module(Path(path)), name, path), source)
    if checkpoint is not None:
        _fill(model, state_dict(checkpoint), checkpoint)
    return model.eval()


def attribute(owner: ModuleType, name: str, path: str) -> Any:
    """The attribute `name` of a user's module.

    Raises:
        ValueError: it has none; lists what could be meant.
    """
    if not hasattr(owner, name):
        known = sorted(k for k, v in vars(owner).items() if callable(v) and not k.startswith("_"))
        raise ValueError(f"{path} defines no {name!r}: expected one of {', '.join(known)}")
    return getattr(owner, name)


def state_dict(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name.

    Raises:
        ValueError: the file is missing, unreadable or truncated, contains code, or holds no
            tensors by name.
    """
    if not checkpoint.is_file():
        raise ValueError(f"checkpoint {checkpoint} is missing: give the path of a file")
    try:
        if checkpoint.suffix == ".safetensors":
            return load_file(checkpoint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of ends in a fault, told below
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        raise ValueError(
            f"checkpoint {checkpoint} holds more than tensors, and loading it would execute code: "
            "it was not loaded. Save model.state_dict() and give that file"
        ) from fault
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, SafetensorError) as fault:
        raise ValueError(
            f"checkpoint {checkpoint} cannot be read, it may be truncated or of another kind "
            f"({type(fault).__name__}): expected what torch.save or safetensors write"
        ) from fault
    return _tensors_of(content, checkpoint)


def _tensors_of(content: Any, checkpoint: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = isinstance(content, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    )
    if not named:
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"checkpoint {checkpoint} must hold tensors by name, got {got}: save model.state_dict()"
        )
    weights: dict[str, Tensor] = content
    return weights


def _fill(model: nn.Module, weights: dict[str, Tensor], checkpoint: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as fault:
        if weights and all(name.startswith("module.") for name in weights):
            raise ValueError(
                f"checkpoint {checkpoint} was saved from a DataParallel model, its names start "
                "with 'module.': save model.module.state_dict()"
            ) from fault
        reason = " ".join(str(fault).split())[:400]
        raise ValueError(f"checkpoint {checkpoint} does not fit the model: {reason}") from fault


def module(path: Path) -> ModuleType:
    """The user's module at `path`, executed once; its folder is importable, as for a script.

    Raises:
        ValueError: it is not a Python file, or fails.
    """
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(
            f"{path} is not a Python file: expected path/to/module.py:factory, or the name of a "
            "network that `fperr zoo` lists"
        )
    name = f"fperr_user_module_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(found)
    except (Exception, SystemExit) as fault:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(fault).__name__}: {fault}") from fault
    return found


def _call(factory: Any, source: str) -> nn.Module:
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise ValueError(f"{source} must be a function, got {type(factory).__name__}")
    needed = [
        name
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ValueError(
            f"{source} needs the arguments {', '.join(needed)}, but is called without any: "
            "give a function of no arguments that returns the model"
        )
    try:
        model = factory()
    except Exception as fault:
        raise ValueError(f"{source} fails: {type(fault).__name__}: {fault}") from fault
    if not isinstance(model, nn.Module):
        raise ValueError(f"{source} must return a torch.nn.Module, got {type(model).__name__}")
    return model
