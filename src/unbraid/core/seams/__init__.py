"""Where attention can be met: transformers' registry, torch's fused function, and plain softmax."""
