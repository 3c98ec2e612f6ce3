"""Networks with operations that few networks use."""

import torch.nn.functional as F
from torch import Tensor, nn

from tests.makers.architectures.layers import DynamicConv, GeM, pooled
from tests.makers.architectures.settled import Before, head, settled, small_cnn
from tests.makers.architectures.vectors import (
    SEQUENCE,
    Codebook,
    LastStep,
    MatchingNetwork,
    mlp,
)
from tests.makers.architectures.weights import Quantised, QuantisedByChannel


def with_border(x: Tensor) -> Tensor:
    """A number written into a slice."""
    y = x.clone()
    y[:, :, 0] = 0.5
    return y


def cut(x: Tensor) -> Tensor:
    """A number that no binary format holds, written where a mask says."""
    y = x.clone()
    y[y > 0.9] = 0.9
    return y * x


def hard_choice(x: Tensor) -> Tensor:
    """The largest entry alone in forward, a softmax in backward."""
    soft = (4 * x).softmax(1)
    hard = F.one_hot(soft.argmax(1), x.shape[1]).to(x.dtype)
    return x * (hard + soft - soft.detach())


def both_ways() -> nn.Module:
    return LastStep(nn.LSTM(3, 3, 2, batch_first=True, bidirectional=True), 6)


RARE = {
    "LSTM": settled(lambda: LastStep(nn.LSTM(3, 5, batch_first=True), 5), *SEQUENCE),
    "BiLSTM": settled(both_ways, *SEQUENCE),
    "CondConv": settled(lambda: nn.Sequential(DynamicConv(), nn.ReLU(), head(4))),
    "GeM pooling, learned": settled(lambda: pooled(GeM(), 4)),
    "VQ-VAE encoder": settled(Codebook, 6),
    "matching network": settled(MatchingNetwork, 6),
    "hard choice": settled(lambda: Before(hard_choice, mlp(nn.Tanh())), 6),
    "randomised leaky ReLU": settled(lambda: mlp(nn.RReLU()), 6),
    "quantised by channel": settled(QuantisedByChannel),
    "quantised with a step of 0.02": settled(lambda: Quantised(0.02)),
    "number into a slice": settled(lambda: Before(with_border, small_cnn())),
    "number by a mask": settled(lambda: Before(cut, small_cnn())),
}
