"""The losses that an attack ascends."""
