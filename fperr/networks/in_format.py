"""The network in one number format: its logits and gradients, and its captured graph."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fperr.emulated_kernels import Float8Layers, Met, emulated, float8_layers
from fperr.errors import ModelError
from fperr.exact.graph import Capture, capture
from fperr.exact.replays import without_autocast
from fperr.exact.saved_values import FloatRun, check_split, float_run
from fperr.exact.tracing import fixed_parameters
from fperr.formats import BFLOAT16, FLOAT16, Format
from fperr.kernel_switches import controlled
from fperr.losses import Context, Loss
from fperr.theory.scaling import Scale

_ROWS_AT_ONCE = 16  # more would gain little, and take the memory of a batch
_ALIGNMENT = 64  # bytes: what PyTorch's own allocations have on a CPU


@dataclass(frozen=True, slots=True)
class FloatGradient:
    """The gradients that one attack step computes in a format, for a batch.

    Attributes:
        logits: Logits (batch, K).
        logit_gradient: Gradient v_hat (batch, K) of the objective (the sum of the losses times the
            quotient of `factor`) with respect to the logits.
        gradient: Gradient g_hat of the objective with respect to x, in the shape of x.
        scale: T and c that the loss used.
        factor: Loss scale, and number that the losses were divided by (the batch size of a mean,
            or 1); both gradients contain their quotient.
        is_autocast: True if the loss was computed under autocast, PyTorch's or an emulated one.
        is_emulated: True if the kernels of a GPU were emulated.
    """

    logits: Tensor
    logit_gradient: Tensor
    gradient: Tensor
    scale: Scale
    factor: tuple[float, int]
    is_autocast: bool
    is_emulated: bool = False


class FormatNetwork:
    """A model in one format, as the user's own `.half()`, `.double()` or autocast would run it.

    Args:
        model: Model in evaluation mode; it is not changed.
        fmt: The format.
        autocast: Run float16 and bfloat16 under `torch.autocast`, with weights in the model's own
            dtype.

    Raises:
        ModelError: the model cannot be copied, or has no layer that the format changes.
    """

    def __init__(self, model: nn.Module, fmt: Format, *, autocast: bool) -> None:
        self.format = fmt
        self.device, model_dtype = device_and_dtype(model)
        self._autocast = autocast and fmt in (FLOAT16, BFLOAT16)
        self.dtype = model_dtype if self._autocast else fmt.network_dtype
        self.model = model if self.dtype == model_dtype else copied(model).to(self.dtype)
        has_float8 = fmt.emulation is not None and fmt.emulation.has_float8_layers
        self._layers = float8_layers(self.model) if has_float8 else Float8Layers()
        self.met = Met()
        self._captures: dict[tuple[int, ...], Capture] = {}
        self._modules = tuple(self.model.modules())

    def check_mode(self) -> None:
        """Refuse to go on in training mode, which the model may have switched on while running.

        Raises:
            ModelError: a module is in training mode.
        """
        if any(module.training for module in self._modules):
            raise ModelError(
                "the model was switched to training mode along the way, where it is another "
                "function: leave out the call of .train(), or call .eval() after it"
            )

    def cast(self, x: Tensor) -> Tensor:
        """Cast the input to the dtype that this network takes, in memory of its own if need be."""
        return aligned(x.to(self.dtype))

    @contextmanager
    def running(self, *, emulates: bool = True) -> Iterator[dict[str, str]]:
        """A context in which kernels run as this format demands; yields the switches it sets.

        Args:
            emulates: Whether kernels of a GPU are emulated, where the format says so. A graph is
                captured without, and replayed with them; autocast's casts are in the graph.
        """
        inner: AbstractContextManager[object] = nullcontext()
        if self._autocast:
            # a cache of casts would pass tensors from one trace to the next
            inner = torch.autocast(self.device.type, dtype=self.format.dtype, cache_enabled=False)
        self.check_mode()
        kernels = emulated(self.format, layers=self._layers, only_casts=not emulates)
        with (
            controlled(self.format) as switches,
            fixed_parameters(self.model),
            inner,
            kernels as met,
        ):
            try:
                yield switches | self._layer_names()
            finally:
                self.met.add(met)
        self.check_mode()

    @property
    def couples_samples(self) -> bool:
        """Whether a sample's numbers depend on its batch, as where a tensor has one scale."""
        return bool(self._layers.weights)

    def _layer_names(self) -> dict[str, str]:
        """The layers in float8, and the linear ones that are not."""
        if not self.couples_samples:
            return {}
        names, others = ", ".join(self._layers.names), ", ".join(self._layers.others)
        return {"layers in float8": names, "linear layers in bfloat16": others}

    def capture(self, x: Tensor) -> Capture:
        """The captured graph for the shape of x; each shape is captured once.

        Raises:
            ModelError: the model fails in this format or cannot be traced.
            UnsupportedOperationError, CaptureAuditError: see `fperr.exact.capture`.
        """
        shape = tuple(x.shape)
        if shape not in self._captures:
            with self.running(emulates=False):
                try:
                    self._captures[shape] = capture(self.model, self.cast(x))
                except ModelError as fault:
                    raise ModelError(f"in {self.format.name}: {fault}") from fault
        return self._captures[shape]

    def saved(self, x: Tensor, v: Tensor) -> FloatRun:
        """Run the batch x, and keep the values that the backward half of the graph reads.

        Args:
            x: Batch (batch, *shape).
            v: Cotangents (batch, K), with which the replay is checked.

        Raises:
            CaptureAuditError: the replay differs from the eager run on this batch, or from the
                graph of one sample, or the values do not split into samples.
        """
        captured, single = self.capture(x), self.capture(x[:1])
        with self.running():
            captured.audit(self.model, self.cast(x), v)
            run = float_run(captured, self.cast(x), v, single)
            if len(x) > 1:
                # on copies of the first sample, the same kernels must give sample 0 the same bits
                first = self.cast(x[:1]).expand_as(x).contiguous()
                check_split(run, float_run(captured, first, v, single), single.shapes)
            return run

    def row_log2_norms(self, x: Tensor) -> list[float]:
        """log2 of the norms of the K rows of the Jacobian at x (1, *shape), in this format.

        Row j is the gradient at the j-th of several copies of x, for the j-th logit.
        """
        directions = torch.eye(self.logits(x).shape[1], dtype=self.dtype, device=x.device)
        norms = []
        for some in torch.split(directions, _ROWS_AT_ONCE):
            with self.running(), torch.enable_grad():
                copies = self.cast(x).detach().repeat(len(some), *[1] * (x.ndim - 1))
                logits = self.model(copies.requires_grad_())
                with without_autocast():
                    (rows,) = torch.autograd.grad(logits, copies, some.to(logits.dtype))
            norms.append(torch.linalg.vector_norm(rows.double().flatten(1), dim=1))
        found: list[float] = torch.cat(norms).log2().tolist()
        return found

    def logits(self, x: Tensor) -> Tensor:
        """The logits (batch, K) at x."""
        with self.running(), torch.no_grad():
            z: Tensor = self.model(self.cast(x))
        return z

    def gradient(
        self, x: Tensor, label: Tensor, loss: Loss, context: Context, *, mean: bool
    ) -> FloatGradient:
        """The gradient of loss_scale * (sum or mean over the batch of `loss`) at x.

        Args:
            x: Batch (batch, *shape).
            label: Classes (batch,): y of an untargeted, y_t of a targeted loss.
            loss: Loss that the attack ascends.
            context: Context of the loss: targeted or not, and the loss scale.
            mean: Average over the batch instead of adding.
        """
        with self.running(), torch.enable_grad():
            leaf = self.cast(x).detach().clone().requires_grad_()
            logits = self.model(leaf)
            losses = loss(logits, label, context)
            objective = losses.mean() if mean else losses.sum()
            if context.loss_scale != 1.0:
                objective = objective * context.loss_scale
            with without_autocast():
                v, g = torch.autograd.grad(objective, (logits, leaf))
            scale = loss.scale(logits, label, context)
        factor = context.loss_scale, len(x) if mean else 1
        emulation = self.format.emulation
        is_autocast = self._autocast or (emulation is not None and emulation.is_autocast)
        return FloatGradient(
            logits.detach(), v, g, scale, factor, is_autocast, emulation is not None
        )


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device of the parameters and buffers of `model`, and their floating-point dtype.

    A model without any is taken to be float32 on the CPU.

    Raises:
        ValueError: they have several dtypes or devices.
    """
    tensors = [*model.parameters(), *model.buffers()]
    dtypes = {t.dtype for t in tensors if t.is_floating_point()}
    devices = {t.device for t in tensors}
    if len(dtypes) > 1 or len(devices) > 1:
        raise ValueError(
            f"the model's parameters must have one dtype and one device, got "
            f"{sorted(map(str, dtypes))} on {sorted(map(str, devices))}: convert it with .to(...)"
        )
    return devices.pop() if devices else torch.device("cpu"), (
        dtypes.pop() if dtypes else torch.float32
    )


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of the model.

    Raises:
        ModelError: it cannot be copied.
    """
    # what hooks compute in each forward pass, as the old weight norm does, has a history of
    # autograd, which cannot be copied
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    try:
        with torch.no_grad():  # TorchScript would remember of what its parameters are copies
            return copy.deepcopy(model, {id(v): v.detach().clone() for v in computed})
    except Exception as fault:
        raise ModelError(
            f"the model cannot be copied, which another format or device needs: {fault}"
        ) from fault


def aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy of it where a batch was cut out of the middle of another tensor.

    Kernels may choose their order of summation by the address of the first number.
    """
    return x if x.data_ptr() % _ALIGNMENT == 0 else x.clone()
