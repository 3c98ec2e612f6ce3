"""The error of a computed gradient: its measures, its stages, and bounds on it."""
