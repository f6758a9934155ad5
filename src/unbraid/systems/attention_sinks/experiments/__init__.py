"""The study behind `unbraid run attention_sinks`."""
