"""Masks of all classes from the classifier's rows (arXiv 1711.10370)."""
