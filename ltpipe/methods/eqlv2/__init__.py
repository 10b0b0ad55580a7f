"""Equalization loss v2 (arXiv 2012.08548)."""
