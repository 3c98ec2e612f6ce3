"""Plain floating point, float64 or float32, that watches where digits are lost."""
