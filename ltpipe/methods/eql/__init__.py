"""Equalization loss (arXiv 2003.05176)."""
