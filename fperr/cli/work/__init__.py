"""What the commands do: loaded when a command runs, not when its options are read."""
