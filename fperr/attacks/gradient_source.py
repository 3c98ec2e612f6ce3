"""The gradient that an attack follows: in a floating-point format, or exact."""

import warnings
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from fperr import pass_origin
from fperr.attacks.goal import Goal
from fperr.errors import ModelError, ReferenceNotCertifiedError, UncertifiedGradientWarning
from fperr.exact.engines.gradient import LossAtSample
from fperr.exact.logit_direction import KINDS, is_order_unclear, logit_direction
from fperr.exact.monitored_network import MonitoredNetwork
from fperr.exact.precision import RUNGS
from fperr.exact.replays import without_autocast
from fperr.formats import Format, of_dtype
from fperr.losses import Context
from fperr.networks.exact_network import ExactNetwork, ExactSample, NoExactSample, SampleLadder
from fperr.networks.in_format import FormatNetwork
from fperr.reasons import too_few_bits

_BITS = 46  # of the gradients that climb: more than float64 is asked for
_LOG2_AGREED_ERROR = -29.0  # largest estimated relative error of float64's gradients, log2
_OPEN_SIGNS = 2.0**-20  # largest share of ||g||_1 of the components whose signs are open


class GradientSource(ABC):
    """The logits and gradients of a network at points x."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """The logits (batch, K) by which success is judged."""

    @abstractmethod
    def running(self) -> AbstractContextManager[object]:
        """A context in which `logits_and_gradient` computes as the format asks.

        Entered once for all steps, because entering takes time.
        """

    @abstractmethod
    def logits_and_gradient(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """The logits (batch, K), and the gradient of the goal's objective, (batch, *shape)."""


class FloatSource(GradientSource):
    """The network in a format, as it would be attacked there.

    Args:
        model: Model to logits (batch, K), in evaluation mode.
        fmt: Format of the network; x may have another dtype, and is rounded to it.
    """

    def __init__(self, model: nn.Module, fmt: Format) -> None:
        self._network = FormatNetwork(model, fmt, autocast=False)

    def logits(self, x: Tensor) -> Tensor:
        """See `GradientSource`."""
        with pass_origin.attack_passes():
            return self._network.logits(x)

    def running(self) -> AbstractContextManager[object]:
        """See `GradientSource`."""
        return self._network.running()

    def logits_and_gradient(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """See `GradientSource`.

        Raises:
            ModelError: no gradient reaches x, or the model is in training mode now.
        """
        self._network.check_mode()
        with torch.enable_grad(), pass_origin.attack_passes():
            leaf = self._network.cast(x).detach().requires_grad_()
            logits = self._network.model(leaf)
            if not logits.requires_grad:
                raise ModelError(
                    "no gradient reaches the input: the model detaches its graph, or runs under "
                    "torch.no_grad(); expected logits that depend on x"
                )
            objective = goal.objective(logits)
            with without_autocast():
                (gradient,) = torch.autograd.grad(objective, leaf)
        return logits.detach(), gradient


class ExactSource(GradientSource):
    """Exact gradients at exact logits; success is judged by the network in the input's format.

    A ladder: float64 where float32 agrees and the signs are decided; else pairs of float64, and
    balls where their bound, or their agreement, does not show 46 bits. PyTorch's own float64 is
    compared at the inputs, and wherever a sample climbs.

    Args:
        model: Model to logits (batch, K), in evaluation mode.
        x: (batch, *shape), the inputs.

    Raises:
        ContradictedError: PyTorch in float64 computes something else at the inputs.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        float_network = FormatNetwork(model, of_dtype(x.dtype), autocast=False)
        self._float_source = FloatSource(model, of_dtype(x.dtype))
        self._network = ExactNetwork(float_network, x[:1], RUNGS, _BITS, by_rows=False)
        self._entries = x[0].numel()
        self._float64 = MonitoredNetwork(self._network.capture, x.device)
        self._network.samples(x, [-round(_LOG2_AGREED_ERROR)], lambda: None)

    def logits(self, x: Tensor) -> Tensor:
        """See `GradientSource`."""
        return self._float_source.logits(x)

    def running(self) -> AbstractContextManager[object]:
        """See `GradientSource`."""
        return self._float_source.running()

    def logits_and_gradient(self, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """See `GradientSource`: a gradient in float64, each sample's times some positive number.

        NaN for samples whose logits are not finite, or whose gradient is not certified.

        Warns:
            UncertifiedGradientWarning: Says which sample's is not, and why.

        Raises:
            ContradictedError: PyTorch in float64 computes something else.
        """
        logits = self._float_source.logits(x)
        _, _, is_finite = goal.verdict(logits)
        judged = torch.nonzero(is_finite)[:, 0]  # others have no exact logits either
        gradient = torch.full(
            (len(x), x[0].numel()), torch.nan, dtype=torch.float64, device=x.device
        )
        if goal.loss.kind in KINDS and len(judged):
            agreed, is_decided = self._agreed(x[judged], goal, judged)
            gradient[judged[is_decided]] = agreed[is_decided]
            judged = judged[~is_decided]
        if len(judged):
            samples = self._network.samples(x[judged], [_BITS], lambda: None)
            for i, sample in zip(judged.tolist(), samples, strict=True):
                try:
                    gradient[i] = self._climbed(sample, goal, i).to(x.device)
                except ReferenceNotCertifiedError as fault:  # the others can be attacked
                    warnings.warn(str(fault), UncertifiedGradientWarning, stacklevel=2)
        return logits, gradient.reshape(x.shape)

    def _agreed(self, x: Tensor, goal: Goal, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients (len(x), entries) by float64, and where float32 agrees, and on the signs.

        Args:
            x: Points of the judged samples.
            goal: Goal of the attack.
            samples: Numbers of these samples.
        """
        unclear = torch.zeros(len(x), dtype=torch.bool, device=x.device)

        def directions(rows: Tensor, z: Tensor, leading: Tensor) -> Tensor:
            numbers = samples[rows]
            label, is_targeted = goal.label[numbers], goal.targets is not None
            context = Context(is_targeted, goal.y[numbers])
            c = goal.loss.scale(leading, label, context).c
            kind, y = goal.loss.kind, goal.y[numbers]
            unclear[rows] = is_order_unclear(kind, leading, label, targeted=is_targeted)
            c = c.to(torch.float64)
            return logit_direction(kind, z, leading, label, c, y, targeted=is_targeted)

        found = self._float64.gradient(x, directions)
        size = torch.linalg.vector_norm(found.gradient, dim=1)
        tolerance = size * torch.exp2(found.log2_error)
        magnitudes = found.gradient.abs()
        open_signs = torch.where(magnitudes <= tolerance[:, None], magnitudes, 0.0).sum(1)
        are_signs_decided = open_signs <= _OPEN_SIGNS * magnitudes.sum(1)
        is_close = found.log2_error <= _LOG2_AGREED_ERROR
        return found.gradient, is_close & are_signs_decided & ~unclear & (size > 0)

    def _climbed(self, ladder: SampleLadder | NoExactSample, goal: Goal, i: int) -> Tensor:
        """The gradient (entries,) in float64 of sample i, from a rung above float64.

        Raises:
            ReferenceNotCertifiedError: not even balls settle it.
        """
        if isinstance(ladder, NoExactSample):
            raise ReferenceNotCertifiedError(
                f"sample {i}: its exact gradient cannot be computed: {ladder.reason}"
            )
        first = ladder.first(_BITS)
        assert isinstance(first, ExactSample)
        loss = _loss_at_sample(first, goal, i)
        sample, exact = ladder.gradient(loss, _BITS)
        if exact is None:  # undefined, as DLR's where its denominator is 0
            return torch.zeros(self._entries, dtype=torch.float64)
        if not exact.has_bits(_BITS):
            raise ReferenceNotCertifiedError(
                f"sample {i}: {too_few_bits(exact.log2_error, _BITS)}, on every rung"
            )
        values, _ = sample.vectors.to_scaled(exact.gradient)
        return values.reshape(-1)


def _loss_at_sample(sample: ExactSample, goal: Goal, i: int) -> LossAtSample:
    """The loss of sample i with the scale that float64 computes for its exact logits."""
    row, is_targeted = slice(i, i + 1), goal.targets is not None
    label, context = goal.label[row].cpu(), Context(is_targeted, goal.y[row].cpu())
    c = float(goal.loss.scale(sample.logits, label, context).c)
    return LossAtSample(
        goal.loss.kind, int(label), c, is_targeted, int(goal.y[i]), tau=goal.loss.tau
    )
