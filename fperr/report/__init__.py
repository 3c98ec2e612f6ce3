"""Reports of measurements: data frame, summary, verdict, figures, page and file."""
