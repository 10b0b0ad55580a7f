"""Decoupled training of the classifier: cRT and LWS (arXiv 1910.09217)."""
