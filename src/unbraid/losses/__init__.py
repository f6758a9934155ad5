"""Losses, and training helpers around them, that two or more systems use."""
