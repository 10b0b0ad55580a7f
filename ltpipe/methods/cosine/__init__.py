"""Cosine classifier with a learnable scale."""
