"""Ball arithmetic with Arb."""
