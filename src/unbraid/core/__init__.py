"""The house: calls, seams, heads, systems, results, training."""
