"""What a robust-accuracy gap is made of: floating-point error, the loss, and the search."""

from fperr.attribution.entry import attribute
from fperr.attribution.result import Attribution

__all__ = ["Attribution", "attribute"]
