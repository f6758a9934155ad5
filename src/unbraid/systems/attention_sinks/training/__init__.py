"""Models trained from scratch with and without each variant: a toy whose answer is known, and small language models."""
