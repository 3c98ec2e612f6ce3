"""Reads the weights of a checkpoint without executing code, and loads them unchanged."""

import pickle
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def state_dict(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name.

    Args:
        checkpoint: File with a state_dict, as `torch.save` or safetensors write it, or with a
            dictionary that holds one under `state_dict` or `model_state_dict`. It is never
            unpickled.

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
            warnings.simplefilter("ignore")  # every cause of a warning raises an error below
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        raise ValueError(
            f"checkpoint {checkpoint} holds more than tensors, and loading it would execute code: "
            "it was not loaded. Save model.state_dict() and give that file"
        ) from fault
    except Exception as fault:  # the readers raise a dozen kinds, MemoryError among them
        raise ValueError(
            f"checkpoint {checkpoint} cannot be read, it may be truncated or of another kind "
            f"({type(fault).__name__}): expected what torch.save or safetensors write. Save "
            "model.state_dict() again"
        ) from fault
    for name in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    by_name = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not by_name or not all(isinstance(t, Tensor) for t in content.values()):
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"checkpoint {checkpoint} must hold tensors by name, got {got}: save model.state_dict()"
        )
    weights: dict[str, Tensor] = content
    return weights


def fill(model: nn.Module, weights: dict[str, Tensor], checkpoint: Path) -> str | None:
    """Load the weights into the model without changing a value.

    Args:
        model: Model whose parameters and buffers are replaced.
        weights: Tensors by name.
        checkpoint: File that the weights come from, for messages.

    Returns:
        A sentence if tensors were cast to another dtype, in which every value is exact; else None.

    Raises:
        ValueError: names or shapes differ, or a cast to the model's dtype would change a value.
    """
    parameters = model.state_dict()
    casts = {
        name: (tensor, parameters[name])
        for name, tensor in weights.items()
        if isinstance(parameters.get(name), Tensor) and _differs(tensor, parameters[name])
    }
    for name, (tensor, parameter) in casts.items():
        _check_exact(name, tensor, parameter, checkpoint)
    try:
        model.load_state_dict(weights)
    except RuntimeError as fault:
        if weights and all(name.startswith("module.") for name in weights):
            raise ValueError(
                f"checkpoint {checkpoint} was saved from a DataParallel model, its names start "
                "with 'module.': save model.module.state_dict()"
            ) from fault
        reason = " ".join(str(fault).split())[:400]
        raise ValueError(
            f"checkpoint {checkpoint} does not fit the model: {reason}. Give the factory of the "
            "network that was saved"
        ) from fault
    if not casts:
        return None
    pairs = sorted({f"{short(t.dtype)} as {short(p.dtype)}" for t, p in casts.values()})
    return (
        f"checkpoint {checkpoint}: {len(casts)} tensors are cast, {', '.join(pairs)}, each value "
        "exactly"
    )


def short(dtype: torch.dtype) -> str:
    """The name of the dtype, without `torch.`."""
    return str(dtype).removeprefix("torch.")


def _differs(tensor: Tensor, parameter: Tensor) -> bool:
    """Whether the two are stored differently: in dtype, layout, or without values."""
    return (tensor.dtype, tensor.layout, tensor.is_meta) != (
        parameter.dtype,
        parameter.layout,
        parameter.is_meta,
    )


def _kind(tensor: Tensor) -> str:
    """The kind of its numbers: a cast from one kind to another makes another network."""
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_meta:
        return "no"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "floating-point"
    return "boolean" if tensor.dtype == torch.bool else "integer"


def _check_exact(name: str, tensor: Tensor, parameter: Tensor, checkpoint: Path) -> None:
    """Refuse a cast that would change a value."""
    stored_dtype, model_dtype = short(tensor.dtype), short(parameter.dtype)
    kinds = _kind(tensor), _kind(parameter)
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"checkpoint {checkpoint} holds {kinds[0]} values ({stored_dtype}) for {name}, "
            f"which is {model_dtype} in the model, and a cast would make another network: save "
            f"the state_dict of a model in {model_dtype}"
        )
    lost = _number_changed(tensor, parameter.dtype)
    if lost:
        method = {"float64": "double", "float32": "float"}.get(stored_dtype)
        build = (
            f"return model.{method}() from the factory" if method else f"build it in {stored_dtype}"
        )
        raise ValueError(
            f"checkpoint {checkpoint} is {stored_dtype} and the model {model_dtype}: {lost} of "
            f"{tensor.numel()} values of {name} are no {model_dtype} numbers, and rounding them "
            f"would make another network. To use the checkpoint's, {build}; or save it in "
            f"{model_dtype}"
        )


def _number_changed(tensor: Tensor, dtype: torch.dtype) -> int:
    """How many values a cast to `dtype` changes; a NaN that stays NaN is unchanged."""
    cast = tensor.to(dtype)
    if tensor.is_floating_point():  # float64 holds every number of the narrower dtypes
        before, after = tensor.to(torch.float64), cast.to(torch.float64)
        changed = (before != after) & ~(before.isnan() & after.isnan())
    elif tensor.is_complex():
        before, after = tensor.to(torch.complex128), cast.to(torch.complex128)
        changed = (before != after) & ~(before.isnan() & after.isnan())
    else:
        changed = cast.to(tensor.dtype) != tensor
    return int(changed.sum())
