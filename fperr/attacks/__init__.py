"""Gradient attacks in any arithmetic."""

from fperr.attacks.batches import attack_in_batches
from fperr.attacks.entry import AttackResult, attack

__all__ = ["AttackResult", "attack", "attack_in_batches"]
