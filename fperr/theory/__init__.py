"""Functions of the logits alone: scenarios, optimal temperatures, and the scale of a loss."""
