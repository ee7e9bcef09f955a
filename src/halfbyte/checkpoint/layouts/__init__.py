"""Layouts in which other programs store packed weights: AutoAWQ, GPTQ, compressed-tensors."""
