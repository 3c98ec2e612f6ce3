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
from fperr.memory import in_pieces
from fperr.networks.in_format import FormatNetwork, device_and_dtype
from fperr.networks.model import usable_model
from fperr.run_folder import RunFolder, opened
from fperr.storage import sealed

SETTINGS_FILE = "attack.json"
_NOT_SETTINGS = ("model", "x", "y", "targets", "on_step")  # the tensors are stored as digests
_DEFAULTS = {n: p.default for n, p in inspect.signature(attack).parameters.items()}
_PROBED_SAMPLES = 4
# relative: another number of threads or machine changes logits by less, in float16 too
_LOGIT_TOLERANCE = 1e-3
_TENSORS = tuple(field.name for field in fields(AttackResult) if field.type is Tensor)
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
    """Attack in batches; each is on disk before the next begins, and none is done twice.

    A folder of the same attack that was cut off is continued. It holds `attack.json`, and a file
    for each batch with the columns of `AttackResult` and the adversarial inputs. Each file has a
    digest; a batch that does not fit its own is attacked again, with a `DamagedFileWarning`.

    Args:
        model: Model to logits (batch, K), as for `attack`.
        x: (n, *shape), the clean inputs.
        y: (n,) int64, the true labels.
        folder: New folder, or that of the same attack cut off.
        batch_size: Number of samples at once; fewer where the device's memory does not do.
        advance: Function called with the result of each batch, whether it was computed or read.
        wait: Whether to wait until another run in the folder has ended, instead of refusing.
        options: Options of `attack`; `targets` are cut into batches, too.

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
    stored_options = {
        name: value
        for name, value in (_DEFAULTS | options).items()
        if name not in _NOT_SETTINGS and not callable(value)
    }
    settings = {
        "inputs": digest(*inputs),
        "model": f"{model}",
        "weights": digest(*model.state_dict().values()),
        "batch_size": batch_size,
        "network": _digest_of_network(model, x),
        **{name: _as_text(value) for name, value in stored_options.items()},
        "versions": {"fperr": version("fperr"), "torch": torch.__version__},
    }

    def attacked(rows: slice) -> AttackResult:
        goals = None if targets is None else targets[rows]
        return attack(model, x[rows], y[rows], targets=goals, **options)

    with opened(folder, SETTINGS_FILE, wait=wait) as run:
        settings["first logits"] = _first_logits(model, x, run)
        if run.settings is not None:
            run.begin(settings)
        frames = []
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            name = f"{start:07d}.safetensors"
            result = None if run.settings is None else _read_batch(run, name, len(x[rows]))
            if result is None:
                with warnings.catch_warnings():  # one warning at the end, for all batches
                    warnings.simplefilter("ignore", AttackWarning)
                    result = _joined(in_pieces(attacked, slice(start, min(rows.stop, len(x)))))
                run.begin(settings)  # not before: an argument may be wrong
                _write_batch(run, name, result)
            columns = {name: getattr(result, name).cpu().numpy() for name in _COLUMNS}
            samples, labels = range(start, start + len(result.success)), y[rows].cpu().numpy()
            frames.append(pd.DataFrame({"sample": samples, "label": labels, **columns}))
            if advance is not None:
                advance(result)
        run.check()
    frame = pd.concat(frames, ignore_index=True)
    outcome = Outcome.from_frame(frame)
    outcome.warn(stacklevel=4)  # at the line that called this function, above its decorator
    return frame


def _joined(results: list[AttackResult]) -> AttackResult:
    """The result of a batch, from those of its pieces."""
    if len(results) == 1:
        return results[0]
    tensors = {name: torch.cat([getattr(r, name) for r in results]) for name in _TENSORS}
    return AttackResult(settings=results[0].settings, **tensors)


def _as_text(value: object) -> str:
    """The spelling of an option in the settings: 1 and 1.0, lists and tuples are alike."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_as_text, value))})"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        return repr(int(number) if number.is_integer() else number)
    return str(value)


def _digest_of_network(model: nn.Module, x: Tensor) -> str:
    """The digest of the captured operations and every number in them.

    Where the network cannot be captured, a text that says why: the attack itself raises if
    something is wrong with the model.
    """
    try:
        network = FormatNetwork(model, of_dtype(device_and_dtype(model)[1]), autocast=False)
        return network.capture(x[:1]).network_digest
    except Exception as fault:
        return f"not captured: {type(fault).__name__}"


def _write_batch(run: RunFolder, file_name: str, result: AttackResult) -> None:
    """Write a batch; cloned, because two of its tensors may share their memory."""
    tensors = {name: getattr(result, name).detach().cpu().clone() for name in _TENSORS}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    run.keep(file_name, sealed(save(contiguous, {"seal": run.stamp(file_name)})))


def _read_batch(run: RunFolder, file_name: str, samples: int) -> AttackResult | None:
    """The result of a batch of so many samples, read from disk; None if it must be computed."""
    content = run.piece(file_name)
    if content is None:
        return None
    try:
        tensors = load(content)
    except SafetensorError:
        tensors = {}
    if tensors.keys() != set(_TENSORS) or any(len(t) != samples for t in tensors.values()):
        run.distrust(file_name)
        return None
    return AttackResult(settings=None, **tensors)


def _first_logits(model: nn.Module, x: Tensor, run: RunFolder) -> list[list[float]]:
    """The logits of the first samples, which tell apart models of equal weights and text.

    Those that the folder holds are returned where the model's are near them, so that the settings
    stay equal on another machine.
    """
    try:
        with torch.no_grad():
            computed: Tensor = model(x[:_PROBED_SAMPLES]).double().cpu()
    except (RuntimeError, TypeError, AttributeError, ValueError):  # the attack says what is wrong
        computed = torch.zeros(0)
    logits: list[list[float]] = computed.tolist()
    stored = torch.tensor((run.settings or {}).get("first logits", []), dtype=torch.float64)
    if stored.shape != computed.shape:
        return logits
    is_finite = stored.isfinite()
    tolerance = float(_LOGIT_TOLERANCE * stored[is_finite].abs().max()) if is_finite.any() else 0.0
    is_near = torch.allclose(stored, computed.double(), 0, tolerance, equal_nan=True)
    return stored.tolist() if is_near else logits
