"""Networks of points, sets and graphs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.makers.architectures.settled import CLASSES, settled


class PointTransform(nn.Module):
    """PointNet with its T-net: 16 points in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.ReLU())
        self.matrix, self.head = nn.Linear(4, 9), nn.Linear(6, CLASSES)
        self.features = nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.transform(x).max(2)[0]).view(-1, 3, 3)
        matrix = matrix + torch.eye(3, dtype=x.dtype, device=x.device)
        return self.head(self.features(matrix @ x).max(2)[0])


class NearestNeighbours(nn.Module):
    """DGCNN's: each point with its nearest three, an edge convolution, and maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Sequential(
            nn.Conv2d(6, 5, 1, bias=False), nn.BatchNorm2d(5), nn.LeakyReLU(0.2)
        )
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, points = x.shape
        inner = -2 * torch.matmul(x.transpose(2, 1), x)
        squares = torch.sum(x**2, dim=1, keepdim=True)
        index = (-squares - inner - squares.transpose(2, 1)).topk(3, dim=-1)[1]
        index = (index + torch.arange(n, device=x.device).view(-1, 1, 1) * points).view(-1)
        centres = x.transpose(2, 1).contiguous()
        neighbours = centres.view(n * points, -1)[index, :].view(n, points, 3, channels)
        centres = centres.view(n, points, 1, channels).repeat(1, 1, 3, 1)
        pairs = torch.cat((neighbours - centres, centres), dim=3).permute(0, 3, 1, 2).contiguous()
        y = self.edges(pairs).max(dim=-1)[0]
        return self.head(torch.cat([y.max(2)[0], y.mean(2)], 1))


class DenseGraph(nn.Module):
    """Two graph convolutions by a normalised adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        linked = (torch.rand(5, 5) < 0.5).float()
        linked = ((linked + linked.T + torch.eye(5)) > 0).float()
        scale = linked.sum(1).rsqrt()
        self.register_buffer("adjacency", scale[:, None] * linked * scale[None, :])
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return (self.adjacency @ self.last(F.relu(self.adjacency @ self.first(x)))).mean(1)


class MessagePassing(nn.Module):
    """PyTorch Geometric's: messages along a list of edges, summed where they arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("source", torch.tensor([0, 1, 2, 3, 4, 0, 2]))
        self.register_buffer("target", torch.tensor([1, 2, 3, 4, 0, 2, 4]))
        self.message, self.update = nn.Linear(6, 5), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.cat([x.index_select(1, self.source), x.index_select(1, self.target)], -1)
        sums = x.new_zeros(len(x), x.shape[1], 5)
        sums = sums.index_add(1, self.target, F.relu(self.message(pairs)))
        return self.update(torch.cat([x, sums], -1)).mean(1)


class GraphAttention(DenseGraph):
    """GAT's: attention among linked nodes only."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        scores = F.leaky_relu(self.left(y) + self.right(y).transpose(1, 2), 0.2)
        weights = torch.where(self.adjacency > 0, scores, -9e15).softmax(-1)
        return self.last(F.elu(weights @ y)).mean(1)


class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = nn.Linear(3, 6), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.each(x))
        return self.all(torch.cat([y.sum(1), y.std(1)], 1))


GRAPHS = {
    "PointNet with T-net": settled(PointTransform, 3, 16),
    "DGCNN": settled(NearestNeighbours, 3, 8),
    "graph convolution": settled(DenseGraph, 5, 3),
    "message passing": settled(MessagePassing, 5, 3),
    "graph attention": settled(GraphAttention, 5, 3),
    "deep sets": settled(DeepSets, 5, 3),
}  # fmt: skip
