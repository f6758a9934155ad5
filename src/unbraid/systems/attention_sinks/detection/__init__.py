"""Measuring sinks: ten metrics from one pass, in linear memory."""
