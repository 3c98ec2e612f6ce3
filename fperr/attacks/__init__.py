"""Gradient attacks in any arithmetic."""

from fperr.attacks.batches import attack_in_batches
from fperr.attacks.entry import AttackResult, attack
from fperr.attacks.outcome import AttackWarning, NoGradientWarning, Outcome, UnjudgedWarning

__all__ = [
    "AttackResult",
    "AttackWarning",
    "NoGradientWarning",
    "Outcome",
    "UnjudgedWarning",
    "attack",
    "attack_in_batches",
]
