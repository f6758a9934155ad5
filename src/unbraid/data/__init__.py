"""Worlds: data whose true factors are known."""
