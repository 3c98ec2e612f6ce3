"""A long attack in batches: written as it goes, resumed where it was cut off."""

import inspect
import json
import os
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fperr import checks
from fperr.attacks.entry import AttackResult, attack
from fperr.attacks.outcome import COLUMNS as OUTCOME_COLUMNS
from fperr.attacks.outcome import Outcome, UnjudgedWarning
from fperr.caller_state import in_neutral_state
from fperr.data import digest
from fperr.measurement.models import usable_model

_SETTINGS = "attack.json"
_UNSTORED = ("model", "x", "y", "targets", "on_step")
_DEFAULTS = {n: p.default for n, p in inspect.signature(attack).parameters.items()}
_PROBED = 4
_NEAR = (
    1e-3  # relative: another number of threads or machine changes logits by less, in float16 too
)
_COLUMNS = (*OUTCOME_COLUMNS, "first_success_step", "best_margin", "excess_ulps")


@in_neutral_state
def attack_in_batches(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    folder: str | Path,
    *,
    batch_size: int = 250,
    advance: Callable[[AttackResult], object] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """`fperr.attack` on batches; each is on disk before the next begins, and none is done twice.

    Args:
        model: as for `attack`.
        x: (n, *shape).
        y: (n,).
        folder: new, or of the same attack cut off: `attack.json`, and a file for each batch with
            the numbers of the samples and their adversarial inputs.
        batch_size: samples at once.
        advance: called with the result of each batch, those found on disk among them.
        options: of `attack`; `targets` are cut into batches, too.

    Returns:
        A row for each sample: `sample`, `label`, and the columns of `AttackResult`.

    Raises:
        ValueError: the folder holds another attack; or as `attack` does.
    """
    checks.whole_number("batch_size", batch_size, 1)
    if advance is not None and not callable(advance):
        raise TypeError(f"advance must be a function, got {checks.shown(advance)}: give one")
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder must be a path, got {checks.shown(folder)}: give a str or a Path")
    model = usable_model(model, None, options.pop("logits", None))
    x = checks.inputs("x", x)
    y = checks.class_labels("y", y, len(x), x.device)
    targets = options.pop("targets", None)
    if targets is not None:
        targets = checks.class_labels("targets", targets, len(x), x.device)
    known = [t for t in (x, y, targets) if t is not None]
    chosen = {name: str(value) for name, value in (_DEFAULTS | options).items()}
    settings = {
        "inputs": digest(*known),
        "model": f"{model}",
        "weights": digest(*model.state_dict().values()),
        "logits": _logits(model, x),
        "batch_size": batch_size,
        "options": {name: value for name, value in chosen.items() if name not in _UNSTORED},
        "versions": {"fperr": version("fperr"), "torch": torch.__version__},
    }
    place = Path(folder)
    _agree(place, settings)
    frames = []
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        path = place / f"{start:07d}.safetensors"
        if not path.exists():
            some = None if targets is None else targets[part]
            with warnings.catch_warnings():  # said at the end, for all batches
                warnings.simplefilter("ignore", UnjudgedWarning)
                found = attack(model, x[part], y[part], targets=some, **options)
            names = ("adversarial", "best", *_COLUMNS)  # cloned: the first two may be one tensor
            tensors = {name: getattr(found, name).cpu().clone() for name in names}
            _begin(place, settings)
            partial = path.with_suffix(".partial")
            save_file(tensors, partial)
            os.replace(partial, path)
        found = AttackResult(**load_file(path))
        numbers = {name: getattr(found, name).numpy() for name in _COLUMNS}
        samples = range(start, start + len(found.success))
        frames.append(pd.DataFrame({"sample": samples, "label": y[part].cpu().numpy(), **numbers}))
        if advance is not None:
            advance(found)
    frame = pd.concat(frames, ignore_index=True)
    outcome = Outcome.of_frame(frame)
    if outcome.unjudged:
        warnings.warn(outcome.sentence, UnjudgedWarning, stacklevel=3)
    return frame


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    """Write what the folder holds, with its first batch: not where an argument is wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _SETTINGS).exists():
        partial = folder / (_SETTINGS + ".partial")
        partial.write_text(json.dumps(settings, indent=1))
        os.replace(partial, folder / _SETTINGS)


def _agree(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder with something else in it.

    Raises:
        ValueError: it is no folder, of other settings, or not of an attack.
    """
    path = folder / _SETTINGS
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} holds something else than an attack: give another folder")
        return
    before = json.loads(path.read_text())
    old, new = _flat(before), _flat(settings)
    seen, now = (torch.tensor(flat.pop("logits", [])) for flat in (old, new))
    different = [
        f"{name} {old.get(name)} there, {new.get(name)} here"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    far = float(_NEAR * seen.abs().max()) if seen.numel() else 0.0
    is_near = seen.shape == now.shape and torch.allclose(seen, now, 0, far, equal_nan=True)
    if not different and not is_near:
        different = ["the network gives other logits"]
    if different:
        raise ValueError(
            f"{folder} holds another attack ({'; '.join(different)}): give another folder, or "
            "remove it"
        )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with those of a group beside the others."""
    groups = {name: value for name, value in settings.items() if isinstance(value, dict)}
    rest = {name: value for name, value in settings.items() if name not in groups}
    return rest | {name: value for group in groups.values() for name, value in group.items()}


def _logits(model: nn.Module, x: Tensor) -> list[list[float]]:
    """Of the first samples: what no list of weights tells of a network."""
    try:
        with torch.no_grad():
            found: list[list[float]] = model(x[:_PROBED]).double().tolist()
    except (RuntimeError, TypeError):  # the attack says what is wrong
        return []
    return found
