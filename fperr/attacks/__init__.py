"""Gradient attacks in any arithmetic."""

from fperr.attacks.entry import AttackResult, attack

__all__ = ["AttackResult", "attack"]
