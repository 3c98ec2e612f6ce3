"""A long attack in batches: written as it goes, resumed where it was cut off."""

import inspect
import numbers
import warnings
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fperr import checks
from fperr.attacks.entry import AttackResult, attack
from fperr.attacks.outcome import AttackWarning, Outcome
from fperr.caller_state import in_neutral_state
from fperr.data import digest
from fperr.formats import of_dtype
from fperr.networks.in_format import FormatNetwork, device_and_dtype
from fperr.networks.model import usable_model
from fperr.run_folder import RunFolder, opened
from fperr.storage import sealed

ABOUT = "attack.json"
_UNSTORED = ("model", "x", "y", "targets", "on_step")
_DEFAULTS = {n: p.default for n, p in inspect.signature(attack).parameters.items()}
_PROBED = 4
_NEAR = (
    1e-3  # relative: another number of threads or machine changes logits by less, in float16 too
)
_TENSORS = tuple(each.name for each in fields(AttackResult) if each.type is Tensor)
_POINTS = ("adversarial", "best")
_COLUMNS = tuple(name for name in _TENSORS if name not in _POINTS)


@in_neutral_state
def attack_in_batches(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    folder: str | Path,
    *,
    batch_size: int = 250,
    advance: Callable[[AttackResult], object] | None = None,
    wait: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """`fperr.attack` on batches; each is on disk before the next begins, and none is done twice.

    Args:
        model: as for `attack`.
        x: (n, *shape).
        y: (n,).
        folder: new, or of the same attack cut off: `attack.json`, and a file for each batch with
            the numbers of the samples and their adversarial inputs. Each has a digest; a batch that
            does not fit its own is attacked again, with a `DamagedFileWarning`.
        batch_size: samples at once.
        advance: called with the result of each batch, those found on disk among them.
        wait: until another run in the folder has ended, instead of refusing.
        options: of `attack`; `targets` are cut into batches, too.

    Returns:
        A row for each sample: `sample`, `label`, and the columns of `AttackResult`.

    Raises:
        ValueError: the folder holds another attack, or something else; or as `attack` does.
        StorageError: another run is at work in the folder, it cannot be written to, or batches of
            this run have gone from it.
    """
    batch_size = checks.whole_number("batch_size", batch_size, 1)
    if advance is not None and not callable(advance):
        raise TypeError(f"advance must be a function, got {checks.shown(advance)}: give one")
    checks.path("folder", folder)
    model = usable_model(model, None, options.pop("logits", None))
    x = checks.inputs("x", x)
    y = checks.class_labels("y", y, len(x), x.device)
    targets = options.pop("targets", None)
    if targets is not None:
        targets = checks.class_labels("targets", targets, len(x), x.device)
    inputs = [t for t in (x, y, targets) if t is not None]
    stored = {
        name: value
        for name, value in (_DEFAULTS | options).items()
        if name not in _UNSTORED and not callable(value)
    }
    settings = {
        "inputs": digest(*inputs),
        "model": f"{model}",
        "weights": digest(*model.state_dict().values()),
        "batch_size": batch_size,
        "network": _digest_of_network(model, x),
        **{name: _as_text(value) for name, value in stored.items()},
        "versions": {"fperr": version("fperr"), "torch": torch.__version__},
    }
    with opened(folder, ABOUT, wait=wait) as run:
        settings["first logits"] = _first_logits(model, x, run)
        if run.settings is not None:
            run.begin(settings)
        frames = []
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            name = f"{start:07d}.safetensors"
            result = None if run.settings is None else _read(run, name, len(x[part]))
            if result is None:
                wanted = None if targets is None else targets[part]
                with warnings.catch_warnings():  # said at the end, for all batches
                    warnings.simplefilter("ignore", AttackWarning)
                    result = attack(model, x[part], y[part], targets=wanted, **options)
                run.begin(settings)  # not before: an argument may be wrong
                _keep(run, name, result)
            numbers = {column: getattr(result, column).cpu().numpy() for column in _COLUMNS}
            samples, labels = range(start, start + len(result.success)), y[part].cpu().numpy()
            frames.append(pd.DataFrame({"sample": samples, "label": labels, **numbers}))
            if advance is not None:
                advance(result)
        run.check()
    frame = pd.concat(frames, ignore_index=True)
    outcome = Outcome.of_frame(frame)
    outcome.warn(stacklevel=4)
    return frame


def _as_text(value: object) -> str:
    """An option as it is compared: 1 and 1.0, lists and tuples are alike."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_as_text, value))})"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        return repr(int(number) if number.is_integer() else number)
    return str(value)


def _digest_of_network(model: nn.Module, x: Tensor) -> str:
    """Of the captured operations and every number in them; where it cannot be captured, why.

    What is wrong with the model, the attack says.
    """
    try:
        own = FormatNetwork(model, of_dtype(device_and_dtype(model)[1]), autocast=False)
        return own.capture(x[:1]).network_digest
    except Exception as fault:
        return f"not captured: {type(fault).__name__}"


def _keep(run: RunFolder, name: str, result: AttackResult) -> None:
    """Write a batch; cloned, because two of its tensors may be one."""
    tensors = {each: getattr(result, each).detach().cpu().clone() for each in _TENSORS}
    contiguous = {each: tensor.contiguous() for each, tensor in tensors.items()}
    run.keep(name, sealed(save(contiguous, {"seal": run.stamp(name)})))


def _read(run: RunFolder, name: str, samples: int) -> AttackResult | None:
    """A batch that is there, with its digest."""
    content = run.piece(name)
    if content is None:
        return None
    try:
        tensors = load(content)
    except SafetensorError:
        tensors = {}
    if tensors.keys() != set(_TENSORS) or any(len(t) != samples for t in tensors.values()):
        run.distrust(name)
        return None
    return AttackResult(settings=None, **tensors)


def _first_logits(model: nn.Module, x: Tensor, run: RunFolder) -> list[list[float]]:
    """Of the first samples: what no list of weights tells of a network.

    Those that are stored, where these are near to them.
    """
    try:
        with torch.no_grad():
            now: Tensor = model(x[:_PROBED]).double().cpu()
    except (RuntimeError, TypeError, AttributeError, ValueError):  # the attack says what is wrong
        now = torch.zeros(0)
    logits: list[list[float]] = now.tolist()
    seen = torch.tensor((run.settings or {}).get("first logits", []), dtype=torch.float64)
    if seen.shape != now.shape:
        return logits
    far = float(_NEAR * seen[seen.isfinite()].abs().max()) if seen.isfinite().any() else 0.0
    is_near = torch.allclose(seen, now.double(), 0, far, equal_nan=True)
    return seen.tolist() if is_near else logits
