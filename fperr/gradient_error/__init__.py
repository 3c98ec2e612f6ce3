"""How wrong a computed gradient is: measured, by stage, and bounded."""
