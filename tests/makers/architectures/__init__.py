"""Small networks of the architectures that people attack, in plain PyTorch, by name."""

from tests.makers.architectures.attention import ATTENTION
from tests.makers.architectures.convolutions import CONVOLUTIONS
from tests.makers.architectures.defences import DEFENCES
from tests.makers.architectures.graphs import GRAPHS
from tests.makers.architectures.layers import LAYERS
from tests.makers.architectures.missing import MISSING
from tests.makers.architectures.rare import RARE
from tests.makers.architectures.refused import REFUSED
from tests.makers.architectures.settled import Architecture
from tests.makers.architectures.vectors import VECTORS
from tests.makers.architectures.weights import WEIGHTS
from tests.makers.architectures.wrapped import WRAPPED

__all__ = ["ARCHITECTURES", "MISSING", "REFUSED"]

ARCHITECTURES: dict[str, Architecture] = {
    **CONVOLUTIONS, **LAYERS, **ATTENTION, **VECTORS, **GRAPHS, **DEFENCES, **WEIGHTS, **WRAPPED,
    **RARE,
}  # fmt: skip
