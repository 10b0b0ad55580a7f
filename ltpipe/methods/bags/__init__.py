"""Balanced group softmax (arXiv 2006.10408)."""
