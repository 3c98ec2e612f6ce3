"""The exact network at the samples of a batch, by each of the engines."""
