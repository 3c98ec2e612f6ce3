"""Loads a user's network by `path/to/module.py:factory` and a checkpoint."""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fperr.networks import checkpoints


def load(
    source: str, checkpoint: Path | None = None, notify: Callable[[str], object] | None = None
) -> nn.Module:
    """Call a factory for a model, and load a checkpoint into it; the model is in evaluation mode.

    Args:
        source: `path/to/module.py:factory`. The module is executed, and the factory called without
            arguments.
        checkpoint: File with a state_dict, as `torch.save` or safetensors write it, or with a
            dictionary that holds one under `state_dict` or `model_state_dict`. It is never
            unpickled.
        notify: Function that is called with a sentence if the checkpoint has another dtype than
            the model.

    Raises:
        ValueError: source or checkpoint cannot be used, or a value of the checkpoint would have to
            be rounded; says what was expected and what was got.
    """
    path, _, name = source.rpartition(":")
    if not path:
        raise ValueError(f"{source} names no module: expected path/to/module.py:factory")
    model = _call(attribute(module(Path(path)), name, path), source)
    if checkpoint is not None:
        cast = checkpoints.fill(model, checkpoints.state_dict(checkpoint), checkpoint)
        if cast is not None and notify is not None:
            notify(cast)
    return model.eval()


def attribute(owner: ModuleType, name: str, path: str) -> Any:
    """The attribute `name` of a user's module.

    Raises:
        ValueError: there is no such attribute; lists the functions and classes that there are.
    """
    if not hasattr(owner, name):
        public = sorted(k for k, v in vars(owner).items() if callable(v) and not k.startswith("_"))
        raise ValueError(f"{path} defines no {name!r}: expected one of {', '.join(public)}")
    return getattr(owner, name)


def module(path: Path) -> ModuleType:
    """Import the user's module at `path`, once; its folder is importable, as for a script.

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
    user_module = importlib.util.module_from_spec(spec)
    sys.modules[name] = user_module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(user_module)
    except (Exception, SystemExit) as fault:
        del sys.modules[name]
        raise ValueError(
            f"{path} cannot be imported: {type(fault).__name__}: {fault}. Make `python {path}` run"
        ) from fault
    return user_module


def _call(factory: Any, source: str) -> nn.Module:
    """The model that the factory returns, or the factory itself if it is a model.

    Raises:
        ValueError: the factory needs arguments, fails, or returns no module.
    """
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
    except (Exception, SystemExit) as fault:
        raise ValueError(
            f"{source} fails: {type(fault).__name__}: {fault}. Make it return the model"
        ) from fault
    if not isinstance(model, nn.Module):
        raise ValueError(f"{source} must return a torch.nn.Module, got {type(model).__name__}")
    return model
