"""The report: a tidy data frame, its summary, its plots, its file."""
