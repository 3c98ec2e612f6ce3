"""Networks of RobustBench, as small as their own options make them.

Each stands in a file of its own, which is read alone: the package as a whole imports what only some
of its networks need.
"""

import functools
import importlib.util
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.makers.packaged.untrained import CLASSES, untrained


def _architecture(name: str) -> types.ModuleType:
    package = importlib.util.find_spec("robustbench")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "model_zoo" / "architectures" / f"{name}.py"
    found = importlib.util.spec_from_file_location(f"architecture_{name}", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    with warnings.catch_warnings():
        # some ask for timm under its names of earlier versions
        warnings.simplefilter("ignore", FutureWarning)
        found.loader.exec_module(module)
    return module


def _wide_resnet() -> nn.Module:
    return _architecture("wide_resnet").WideResNet(10, CLASSES, widen_factor=1)


def _dm_wide_resnet(activation: str) -> nn.Module:
    file = _architecture("dm_wide_resnet")
    kind = getattr(file, activation, None) or getattr(nn, activation)
    return file.DMWideResNet(CLASSES, depth=10, width=1, activation_fn=kind)


def _dm_preact_resnet() -> nn.Module:
    file = _architecture("dm_wide_resnet")
    return file.DMPreActResNet(CLASSES, 18, activation_fn=file.Swish, use_cuda=False)


def _preact_resnet() -> nn.Module:
    file = _architecture("resnet")
    return file.PreActResNet(file.PreActBlock, [1, 1, 1, 1], CLASSES)


def _paf_wide_resnet() -> nn.Module:
    file = _architecture("paf_wide_resnet")
    return file.PAF_WideResNet(file.PSSiLU(), 10, CLASSES, widen_factor=1)


def _meansparse() -> nn.Module:
    """With statistics of its own, and a threshold that sets a part of the values to their mean."""
    file = _architecture("Meansparse_wrn_94_16")
    model = file.MeanSparse_DMWideResNet(CLASSES, depth=10, width=1, activation_fn=file.Swish)
    for module in model.modules():
        if isinstance(module, file.MeanSparse):
            module.threshold.fill_(0.25)
            module.running_var.fill_(1.0)
            module.running_mean.copy_(torch.randn_like(module.running_mean) / 4)
    return model


def _convnextv2() -> nn.Module:
    return _architecture("convnext_v2").ConvNeXtV2(
        num_classes=CLASSES, depths=[1, 1, 1, 1], dims=[8, 8, 16, 16]
    )


_NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "WideResNet": (_wide_resnet, 32),
    "DMWideResNet with SiLU": (functools.partial(_dm_wide_resnet, "SiLU"), 32),
    "DMWideResNet with Swish": (functools.partial(_dm_wide_resnet, "Swish"), 32),
    "DMPreActResNet": (_dm_preact_resnet, 32),
    "PreActResNet": (_preact_resnet, 32),
    "PAF_WideResNet": (_paf_wide_resnet, 32),
    "MeanSparse": (_meansparse, 32),
    "ConvNeXtV2": (_convnextv2, 32),
}


def _network(build: Callable[[], nn.Module], side: int) -> tuple[nn.Module, Tensor]:
    return untrained(build, 3, side, side)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    f"robustbench:{name}": functools.partial(_network, *made) for name, made in _NETWORKS.items()
}
