"""The parts of `attention_statistics.py`."""
