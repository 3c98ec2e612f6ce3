"""Checks of models and tensors: inputs, logits, class labels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fperr.checks.values import shown

# the dtypes of inputs in which networks can be run
INPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def class_name(model: nn.Module) -> str:
    """The name of the model's class, below wrappers; of TorchScript that of its module."""
    plain = _unwrapped(model)
    return str(getattr(plain, "original_name", type(plain).__name__))


def _unwrapped(model: nn.Module) -> nn.Module:
    plain: nn.Module = getattr(model, "_orig_mod", model)  # attribute of torch.compile's wrapper
    if isinstance(plain, nn.DataParallel | nn.parallel.DistributedDataParallel):
        wrapped: nn.Module = plain.module
        return wrapped
    return plain


def model(name: str, value: object) -> nn.Module:
    """Check that a value is a module in evaluation mode with finite weights.

    Returns:
        The module, without the wrapper of `torch.compile` or of `DataParallel`: on one device they
        compute what it computes.

    Raises:
        TypeError: The value is no module, or frozen TorchScript.
        ValueError: The module is in training mode, or has weights that are not finite, or is on
            device 'meta'.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(
            f"{name} must be a torch.nn.Module, got {type(value).__name__}: wrap it in one"
        )
    plain = _unwrapped(value)
    if isinstance(plain, torch.jit.ScriptModule) and not hasattr(plain, "training"):
        raise TypeError(
            "the model is frozen TorchScript, whose weights are constants in one dtype: give the "
            "module as it was before torch.jit.freeze"
        )
    training = [path or "the model" for path, m in plain.named_modules() if m.training]
    if training:
        raise ValueError(
            f"the model must be in evaluation mode, but {', '.join(training[:3])}"
            f"{' and others are' if len(training) > 3 else ' is'} in training mode: "
            "call model.eval()"
        )
    for tensor_name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
        if tensor.is_meta:
            raise ValueError(
                f"the model's {tensor_name} is on device 'meta' and holds no numbers: load its "
                "weights"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"the model's {tensor_name} has NaN or infinite entries: load other weights"
            )
    return plain


def inputs(name: str, value: object) -> Tensor:
    """Convert a batch of inputs to a tensor without autograd history, which shares its memory.

    Args:
        name: Name of the argument.
        value: Tensor or NumPy array (n, *shape), float16, bfloat16, float32 or float64.

    Raises:
        TypeError, ValueError: The value is not a dense batch of such numbers.
    """
    if isinstance(value, np.ndarray):
        value = _from_numpy(name, value)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor or a NumPy array, got {type(value).__name__}: "
            "torch.tensor(...)"
        )
    _check_storage(name, value)
    if value.dtype not in INPUT_DTYPES:
        if value.is_complex():
            remedy = f"give {name}.real"
        elif value.is_floating_point():
            remedy = f"convert it, {name}.float()"
        else:
            remedy = f"convert it, e.g. {name}.float() / 255 for pixels of 0..255"
        raise ValueError(
            f"{name} must be floating point in the model's domain (float16, bfloat16, float32 or "
            f"float64), got {value.dtype}: {remedy}"
        )
    if value.ndim < 2 or value.numel() == 0:
        raise ValueError(
            f"{name} must be a batch (n, *shape) of at least one sample, got shape "
            f"{tuple(value.shape)}: "
            + (
                f"add a batch dimension with {name}[None]"
                if value.ndim == 1 and len(value)
                else "give one"
            )
        )
    return value.detach()


def logits(name: str, value: object) -> Tensor:
    """Check that a value is a tensor of logits (batch, K), K >= 2, of a floating-point dtype.

    Raises:
        TypeError, ValueError: The value is not such a tensor.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}: give torch.tensor(...)"
        )
    _check_storage(name, value)
    if value.dtype not in INPUT_DTYPES:
        raise ValueError(
            f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}: convert it "
            "with .to(torch.float32)"
        )
    if value.ndim != 2 or value.shape[1] < 2:
        raise ValueError(
            f"{name} must be (batch, K) with K >= 2, got {tuple(value.shape)}: give one row a "
            "sample and one column a class"
        )
    return value


def class_labels(name: str, value: object, n: int, device: torch.device) -> Tensor:
    """Convert class indices to a tensor (n,) int64 on a device.

    Args:
        name: Name of the argument.
        value: Tensor, array or sequence of n integers.
        n: Number of samples.
        device: Device of the result.

    Raises:
        TypeError, ValueError: The value does not hold integers, or not n of them.
    """
    labels = value
    if not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError, RuntimeError, OverflowError) as fault:
            raise TypeError(
                f"{name} must hold one integer class for each sample, got {shown(value)}: give "
                f"torch.tensor([...]) ({' '.join(str(fault).split())[:120]})"
            ) from fault
    _check_storage(name, labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        remedy = (
            "use .argmax(1) for a row of numbers a sample" if labels.ndim == 2 else "use .long()"
        )
        raise ValueError(f"{name} must hold integer class indices, got {labels.dtype}: {remedy}")
    if labels.shape != (n,):
        raise ValueError(
            f"{name} must have shape ({n},), one class for each sample of x, "
            f"got {tuple(labels.shape)}: give as many"
        )
    return labels.detach().to(device, torch.int64)


def check_classes(name: str, labels: Tensor, classes: int) -> None:
    """Refuse labels that are not classes of the model.

    Args:
        name: Name of the argument.
        labels: Labels (n,) int64.
        classes: Number of classes K of the model.

    Raises:
        ValueError: A label is below 0, or K or larger.
    """
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name} must hold classes from 0 to {classes - 1}, got values from {low} to {high}: "
            f"the model has {classes} classes, give labels below {classes}"
        )


def check_targets(name: str, targets: Tensor, y: Tensor) -> None:
    """Refuse targets that equal the true class; both are (n,) int64.

    Raises:
        ValueError: A target equals the true class; the message names the sample.
    """
    equal = torch.nonzero(targets == y)
    if len(equal):
        sample = int(equal[0])
        raise ValueError(
            f"{name} equal y at sample {sample} (class {int(y[sample])}): "
            "a targeted attack needs a target other than the true label, name another class"
        )


def _from_numpy(name: str, value: np.ndarray[Any, Any]) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError) as fault:
        is_number = np.issubdtype(value.dtype, np.number)
        remedy = f"convert it, e.g. {name}.astype('float32')" if is_number else "give numbers"
        raise ValueError(
            f"{name} has NumPy dtype {value.dtype.str!r}, which PyTorch cannot hold: {remedy}"
        ) from fault


def _check_storage(name: str, value: Tensor) -> None:
    if value.is_nested or value.layout != torch.strided or value.is_quantized:
        kind = "nested" if value.is_nested else "quantized" if value.is_quantized else "sparse"
        remedy = {"nested": "torch.stack the samples", "quantized": f"{name}.dequantize()"}
        raise TypeError(
            f"{name} must be a dense tensor, got a {kind} one: "
            f"{remedy.get(kind, f'{name}.to_dense()')}"
        )
    if value.device.type == "meta":
        raise ValueError(
            f"{name} is on device 'meta' and holds no numbers: make it on the device of the model"
        )
