"""The switches of PyTorch that change the precision of a kernel: set, recorded, restored."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import backends
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import rnn

from fperr.caller_state import SWITCH_LOCK
from fperr.formats import TF32, Format

_VF: Any = vars(rnn)["_VF"]  # where layers look their kernels up
_LSTM: Any = torch._C._VariableFunctions.lstm


@dataclass(frozen=True, slots=True)
class Switch:
    """A switch of `torch.backends`.

    Attributes:
        name: Path of the attribute below `torch.backends`, with dots.
        ieee: Value for the IEEE formats and bfloat16.
        tf32: Value for TF32.
    """

    name: str
    ieee: Any
    tf32: Any

    @property
    def _owner_and_attribute(self) -> tuple[Any, str]:
        *path, attribute = self.name.split(".")
        owner: Any = backends
        for component in path:
            owner = getattr(owner, component)
        return owner, attribute

    def get(self) -> Any:
        """The present value of the switch."""
        return getattr(*self._owner_and_attribute)

    def set(self, value: Any) -> None:
        """Set the switch."""
        setattr(*self._owner_and_attribute, value)


# torch 2.9 introduced `fp32_precision`; mixing it with `allow_tf32` raises, so one of them is used
_SWITCHES = (
    (
        Switch("cuda.matmul.fp32_precision", "ieee", "tf32"),
        Switch("cudnn.conv.fp32_precision", "ieee", "tf32"),
        Switch("cudnn.rnn.fp32_precision", "ieee", "tf32"),
        Switch("mkldnn.matmul.fp32_precision", "ieee", "ieee"),
        Switch("mkldnn.conv.fp32_precision", "ieee", "ieee"),
    )
    if hasattr(backends.cuda.matmul, "fp32_precision")
    else (
        Switch("cuda.matmul.allow_tf32", False, True),
        Switch("cudnn.allow_tf32", False, True),
    )
) + (
    Switch("cuda.matmul.allow_fp16_reduced_precision_reduction", False, False),
    Switch("cuda.matmul.allow_bf16_reduced_precision_reduction", False, False),
    Switch("cudnn.benchmark", False, False),
    Switch("cudnn.deterministic", True, True),
)


@contextmanager
def controlled(fmt: Format) -> Iterator[dict[str, str]]:
    """Set every switch for a format inside a block, and restore the switches afterwards.

    TF32 is allowed for the format TF32 alone; reduced-precision reductions and the benchmark mode
    of cuDNN are off, deterministic cuDNN kernels on; attention runs in its mathematical form.

    Args:
        fmt: Format in which the kernels compute.

    Yields:
        The values of the switches by name, for provenance.
    """
    with SWITCH_LOCK:
        before = [(switch, switch.get()) for switch in _SWITCHES]
        try:
            for switch in _SWITCHES:
                switch.set(switch.tf32 if fmt == TF32 else switch.ieee)
            with mathematical_attention():
                recorded = {switch.name: str(switch.get()) for switch in _SWITCHES}
                yield recorded | {"attention": "math"}
        finally:
            for switch, value in before:
                switch.set(value)


@contextmanager
def mathematical_attention() -> Iterator[None]:
    """Run attention and LSTMs as matrix products and elementwise operations inside a block.

    A fused kernel would have a backward pass of its own, with other roundings.
    """
    with SWITCH_LOCK:
        before = backends.mha.get_fastpath_enabled()
        fused_lstm = vars(_VF).get("lstm")
        try:
            backends.mha.set_fastpath_enabled(False)
            _VF.lstm = _unfused_lstm
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            backends.mha.set_fastpath_enabled(before)
            if fused_lstm is None:
                del _VF.lstm
            else:  # within another such block
                _VF.lstm = fused_lstm


def _unfused_lstm(*arguments: Any) -> Any:
    """PyTorch's LSTM without oneDNN, whose kernel cannot be traced; convolutions keep theirs."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        return _LSTM(*arguments)
    finally:
        torch._C._set_mkldnn_enabled(before)


def keeps_subnormals(device: torch.device) -> bool:
    """Whether a product below the smallest normal float32 survives on `device`."""
    tiny = torch.tensor(2.0**-100, dtype=torch.float32, device=device)
    return bool(tiny * 2.0**-40 != 0)
