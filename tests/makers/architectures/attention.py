"""Networks of tokens: transformers for images, text and sound, and what mixes tokens otherwise."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.makers.architectures.settled import CLASSES, head, settled

TOKENS = (5, 8)


class Attention(nn.Module):
    """Self-attention; kinds of it turn queries and keys, and attend in their own way."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def turned(self, x: Tensor) -> Tensor:
        return x

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = self.attended(self.turned(q), self.turned(k), v)
        return self.out(y.transpose(1, 2).reshape(n, tokens, width))


class CausalAttention(Attention):
    """GPT's: the future is hidden by minus infinity."""

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v


class FlagCausalAttention(Attention):
    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class RotaryAttention(Attention):
    """Llama's: queries and keys are turned by their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 10000.0 ** -(torch.arange(0, 4, 2) / 4))

    def turned(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[-2], device=x.device).to(x.dtype)
        angles = torch.outer(positions, self.frequencies).repeat(1, 2)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


class PaddedAttention(Attention):
    """BERT's: padding is hidden by the least number, and only if there is any."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("present", torch.tensor([True, True, True, True, False]))

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if not self.present.all():
            hidden = torch.finfo(torch.float16).min * (~self.present).to(q.dtype)
            scores = scores + hidden
        return scores.softmax(-1) @ v


class LinearAttention(Attention):
    """Kernels elu + 1 in place of the softmax."""

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        return q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(-2, keepdim=True).transpose(-2, -1))


class CrossCovarianceAttention(Attention):
    """XCiT's: channels attend to channels, with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (F.normalize(t.transpose(-2, -1), dim=-1) for t in (q, k))
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return (attention @ v.transpose(-2, -1)).transpose(-2, -1)


class SparsemaxAttention(Attention):
    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1)
        ordered = scores.sort(-1, descending=True).values
        ranks = torch.arange(1, scores.shape[-1] + 1, device=q.device).to(q.dtype)
        sums = ordered.cumsum(-1)
        count = (1 + ranks * ordered > sums).sum(-1, keepdim=True)
        threshold = (sums.gather(-1, count - 1) - 1) / count.to(q.dtype)
        return (scores - threshold).clamp(min=0) @ v


class Block(nn.Module):
    """Pre-norm: attention and an MLP, each beside what it is given."""

    def __init__(self, attention: nn.Module, norm=nn.LayerNorm, mlp: nn.Module | None = None):
        super().__init__()
        self.norm1, self.norm2, self.attention = norm(8), norm(8), attention
        self.mlp = mlp or nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class RMSNorm(nn.RMSNorm):
    """With an epsilon that float32 holds: the kernel rounds it to the dtype."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=2.0**-20)


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class MeanOfTokens(nn.Module):
    """Blocks, the mean of their tokens, and a linear layer."""

    def __init__(self, *blocks: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


class VisionTransformer(nn.Module):
    """Patches, class and distillation tokens, blocks with layer scale, the mean of two heads."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.tokens = nn.Parameter(torch.zeros(1, 2, 8))
        self.position = nn.Embedding(6, 8)
        self.block, self.norm = Block(attention), nn.LayerNorm(8, eps=1e-6)
        self.head, self.head_dist = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.tokens.expand(len(x), -1, -1), patches], 1)
        tokens = tokens + self.position(torch.arange(6, device=x.device))
        y = self.norm(self.block(tokens))
        return (self.head(y[:, 0]) + self.head_dist(y[:, 1])) / 2


class SinePositions(nn.Module):
    """XCiT's and DETR's position codes: sines and cosines of sums of ones, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.projection = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        ones = torch.ones(1, *y.shape[2:], dtype=torch.float32, device=x.device)
        scales = 10000.0 ** (torch.arange(4, dtype=torch.float32, device=x.device) // 2 / 2)
        codes = []
        for dim in (1, 2):
            places = ones.cumsum(dim) / y.shape[dim + 1] * 2 * math.pi
            angles = places.unsqueeze(-1) / scales
            pairs = angles[..., 0::2].sin(), angles[..., 1::2].cos()
            codes.append(torch.stack(pairs, 4).flatten(3))
        y = y + self.projection(torch.cat(codes, 3).permute(0, 3, 1, 2).to(x.dtype))
        return y.flatten(2).transpose(1, 2)


class ShiftedWindows(nn.Module):
    """Swin's: shifted windows, a mask written slice by slice, a table of relative biases."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.biases = nn.Linear(width, width), nn.Parameter(0.3 * torch.randn(9))
        places = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        apart = places[:, None] - places[None, :] + 1
        self.register_buffer("index", apart[..., 0] * 3 + apart[..., 1])

    def windows(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        x = x.view(n, height // 2, 2, width // 2, 2, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels)

    def mask(self, x: Tensor) -> Tensor:
        regions = torch.zeros(1, *x.shape[1:3], 1, dtype=x.dtype, device=x.device)
        parts = slice(0, -2), slice(-2, -1), slice(-1, None)
        for i, rows in enumerate(parts):
            for j, columns in enumerate(parts):
                regions[:, rows, columns, :] = 3 * i + j
        numbers = self.windows(regions).squeeze(-1)
        differ = numbers.unsqueeze(1) - numbers.unsqueeze(2)
        return differ.masked_fill(differ != 0, -100.0).masked_fill(differ == 0, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        n, height, width, channels = x.shape
        windows = self.windows(torch.roll(self.norm(x), (-1, -1), (1, 2)))
        q, k, v = self.qkv(windows).chunk(3, -1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(channels) + self.biases[self.index]
        scores = scores.view(n, -1, 4, 4) + self.mask(x)
        y = self.out(scores.view(-1, 4, 4).softmax(-1) @ v)
        y = y.view(n, height // 2, width // 2, 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        y = torch.roll(y.reshape(n, height, width, channels), (1, 1), (1, 2))
        return (x + y).permute(0, 3, 1, 2)


class Mixer(nn.Module):
    """MLP-Mixer's block: an MLP over tokens, then one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 5))
        self.channels = nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class StateSpace(nn.Module):
    """Mamba's selective scan, step by step."""

    def __init__(self, width: int = 8, states: int = 2) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.rand(width, states))
        self.steps, self.inputs = nn.Linear(width, width), nn.Linear(width, states)
        self.outputs, self.skip = nn.Linear(width, states), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        steps, rates = F.softplus(self.steps(x)), -self.rates.exp()
        state = torch.zeros(len(x), *rates.shape, dtype=x.dtype, device=x.device)
        results = []
        for t in range(x.shape[1]):
            step = steps[:, t].unsqueeze(-1)
            driven = step * self.inputs(x[:, t]).unsqueeze(1) * x[:, t].unsqueeze(-1)
            state = (step * rates).exp() * state + driven
            results.append((state * self.outputs(x[:, t]).unsqueeze(1)).sum(-1))
        return torch.stack(results, 1) + x * self.skip


class TextCNN(nn.Module):
    """Convolutions of two widths over embeddings and their positions, and the maximum of each."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(6, 8)
        self.convolutions = nn.ModuleList(nn.Conv1d(8, 4, side) for side in (2, 3))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = (x + self.positions(torch.arange(6, device=x.device))).transpose(1, 2)
        maxima = [F.relu(c(y)).max(2).values for c in self.convolutions]
        return self.head(torch.cat(maxima, 1))


def wav2vec() -> nn.Module:
    """Strided convolutions over the samples, weight-normalised positions, and one block."""
    positions = nn.Conv1d(8, 8, 3, padding=1, groups=2)
    features = nn.Sequential(
        nn.Conv1d(1, 8, 5, 5, bias=False), nn.GroupNorm(8, 8), nn.GELU(),
        nn.utils.parametrizations.weight_norm(positions, dim=2), nn.GELU(),
    )  # fmt: skip
    return MeanOfTokens(features, Transposed(), Block(Attention()))


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Tabular(nn.Module):
    """FT-Transformer: a token for each number, a class token, one block."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.randn(5, 8)) for _ in range(2))
        self.token, self.block = nn.Parameter(torch.zeros(8)), Block(Attention())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unsqueeze(-1) * self.scale + self.shift
        tokens = torch.cat([self.token.expand(len(x), 1, -1), tokens], 1)
        return self.head(self.block(tokens)[:, 0])


class SetTransformer(nn.Module):
    """Perceiver's and Set Transformer's pooling: learned queries attend to the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(2, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(len(x), -1, -1)
        return self.head(self.attention(queries, x, x)[0].flatten(1))


def encoder(**options) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return MeanOfTokens(nn.TransformerEncoder(layer, 1, **options))


def of_attention(attention: type[nn.Module]):
    return settled(lambda: MeanOfTokens(Block(attention())), *TOKENS)


ATTENTION = {
    "DeiT": settled(lambda: VisionTransformer(Attention())),
    "Swin": settled(lambda: nn.Sequential(nn.Conv2d(3, 4, 2, 2), ShiftedWindows(), head(4))),
    "XCiT": settled(lambda: MeanOfTokens(SinePositions(), Block(CrossCovarianceAttention()))),
    "MLP-Mixer": settled(lambda: MeanOfTokens(Mixer()), *TOKENS),
    "causal attention, masked": of_attention(CausalAttention),
    "causal attention, by flag": of_attention(FlagCausalAttention),
    "Llama block": settled(
        lambda: MeanOfTokens(Block(RotaryAttention(), RMSNorm, SwiGLU())), *TOKENS
    ),
    "attention beside padding": of_attention(PaddedAttention),
    "linear attention": of_attention(LinearAttention),
    "sparsemax attention": of_attention(SparsemaxAttention),
    "TransformerEncoder": settled(lambda: encoder(enable_nested_tensor=False), *TOKENS),
    "TransformerEncoder, fast path": settled(encoder, *TOKENS),
    "set transformer": settled(SetTransformer, *TOKENS),
    "selective state space": settled(lambda: MeanOfTokens(StateSpace()), 4, 8),
    "text CNN": settled(TextCNN, 6, 8),
    "wav2vec 2.0": settled(wav2vec, 1, 25),
    "FT-Transformer": settled(Tabular, 5),
}
