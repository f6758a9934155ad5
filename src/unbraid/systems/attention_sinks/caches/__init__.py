"""Cache classes for `generate()`: what is kept of the past, and where it is said to stand."""
