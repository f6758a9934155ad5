"""Worlds with known truth and pre-training on real text: what each term of DeBERTa's attention is for."""
