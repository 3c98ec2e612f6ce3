"""The zoo: small trained networks by name.

Example:
    >>> from fperr import zoo
    >>> len(list(zoo.load("fashion_standard").parameters()))
    8
"""

from fperr.zoo.fetching import downloads, fetch, is_at_hand
from fperr.zoo.registry import REGISTRY, Entry, card, entry, load

__all__ = ["REGISTRY", "Entry", "card", "downloads", "entry", "fetch", "is_at_hand", "load"]
