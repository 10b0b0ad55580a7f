"""Seesaw loss (arXiv 2008.10032)."""
