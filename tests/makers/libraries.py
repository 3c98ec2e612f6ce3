"""Other people's attacks, called as their users call them: (model, x, y) -> adversarial inputs."""

import fcntl
import importlib.util
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

# adv_lib and torchattacks need these names alone, and torchvision has no build for a CPU-only torch
if importlib.util.find_spec("torchvision") is None:
    sys.modules["torchvision"] = types.ModuleType("torchvision")
    sys.modules["torchvision"].models = types.ModuleType("torchvision.models")
    sys.modules["torchvision.models"] = sys.modules["torchvision"].models
if importlib.util.find_spec("visdom") is None:
    sys.modules["visdom"] = types.ModuleType("visdom")
# art writes a file at its first import, and fails where another process is about to write it
with (Path(tempfile.gettempdir()) / "first_import_of_art.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    import art.config  # noqa: F401

import foolbox
import torchattacks
from adv_lib.attacks import apgd, pgd_linf
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    ProjectedGradientDescent,
)
from art.estimators.classification import PyTorchClassifier
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def attacks(radius: float, steps: int = 10, step_size: float | None = None) -> dict[str, Attack]:
    """By name, in the maximum norm; steps are a quarter of the radius if no size is given."""
    step_size = radius / 4 if step_size is None else step_size
    pyauto = {"norm": "Linf", "eps": radius, "seed": 0, "device": "cpu"}

    def by_art(kind: type, **options: object) -> Attack:
        def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            shape, loss = tuple(x.shape[1:]), nn.CrossEntropyLoss()
            known = PyTorchClassifier(
                model, loss, shape, 10, clip_values=(0.0, 1.0), device_type="cpu"
            )
            attack = kind(
                known, eps=radius, eps_step=step_size, max_iter=steps, verbose=False, **options
            )
            return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

        return attack

    def by_foolbox(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        return foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=step_size)(
            wrapped, x, y, epsilons=radius
        )[1]

    return {
        "pyautoattack APGD-CE": lambda m, x, y: APGDAttack(
            m, n_iter=steps, loss="ce", **pyauto
        ).perturb(x, y),
        "pyautoattack APGD-T": lambda m, x, y: APGDAttack_targeted(
            m, n_iter=steps, n_target_classes=2, **pyauto
        ).perturb(x, y),
        "pyautoattack FAB": lambda m, x, y: FABAttack_PT(m, n_iter=3, **pyauto).perturb(x, y),
        "torchattacks PGD": lambda m, x, y: torchattacks.PGD(
            m, eps=radius, alpha=step_size, steps=steps
        )(x, y),
        "torchattacks APGD": lambda m, x, y: torchattacks.APGD(m, eps=radius, steps=steps)(x, y),
        "foolbox LinfPGD": by_foolbox,
        "ART PGD": by_art(ProjectedGradientDescent),
        "ART APGD": by_art(AutoProjectedGradientDescent, nb_random_init=1),
        "adv_lib PGD": lambda m, x, y: pgd_linf(m, x, y, ε=radius, steps=steps),
        "adv_lib APGD": lambda m, x, y: apgd(m, x, y, radius, norm=float("inf"), n_iter=steps),
    }
