"""Everything that is a function of the logits alone: scenarios, scales, losses."""
