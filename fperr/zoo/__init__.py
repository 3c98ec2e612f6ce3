"""The zoo: small trained networks by name."""

from fperr.zoo.registry import REGISTRY, Entry, card, entry, load

__all__ = ["REGISTRY", "Entry", "card", "entry", "load"]
