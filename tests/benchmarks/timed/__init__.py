"""What asv measures (`make bench`): above all ratios, both sides in turn in one run."""
