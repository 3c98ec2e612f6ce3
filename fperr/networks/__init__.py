"""Users' networks: made usable, run in a number format, run exactly."""
