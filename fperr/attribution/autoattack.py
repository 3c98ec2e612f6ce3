"""AutoAttack, of pyautoattack, on the images that withstand everything else."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fperr.attribution.arms import Setting
from fperr.errors import MissingDataError

LIBRARY = "pyautoattack"
_NORMS = {"linf": "Linf", "l2": "L2"}


def check_library() -> None:
    """Check that AutoAttack can be imported.

    Raises:
        MissingDataError: It is not installed.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise MissingDataError(
            f"search='autoattack' needs the library {LIBRARY}, which is not installed: "
            f"pip install {LIBRARY}, or give search='restarts'"
        )


def fooled_by_autoattack(setting: Setting, images: np.ndarray) -> np.ndarray:
    """Which of the images AutoAttack fools: (len(images),) bool, by the network's prediction.

    Its standard version, in the dtype of x; untargeted. The caller's random numbers stay, those of
    CUDA devices among them.

    Args:
        setting: What all arms have in common.
        images: Numbers of the images.
    """
    library: Callable[..., Any] = importlib.import_module(LIBRARY).AutoAttack
    rows = torch.from_numpy(images)
    x, y = setting.x[rows], setting.y[rows]
    ensemble = library(
        setting.model, norm=_NORMS[setting.norm], eps=setting.radius, seed=setting.seed,
        device=x.device.type, version="standard",
    )  # fmt: skip
    ensemble.verbose = False
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        adversarial, _ = ensemble.run_standard_evaluation(x, y, batch_size=setting.batch_size)
    with torch.no_grad():
        pieces = torch.split(adversarial, setting.batch_size)
        z = torch.cat([setting.model(piece) for piece in pieces])
    # logits that are NaN or overflow are no prediction, and fool nobody
    is_judged = z.amax(1) < torch.inf
    fooled: np.ndarray = ((z.argmax(1) != y) & is_judged).cpu().numpy()
    return fooled
