"""Users' networks: made usable, run in a format, run exactly."""
