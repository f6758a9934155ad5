"""Changing what sinks get: taps in closed form, and registers at test time."""
