"""Equalized focal loss (CVPR 2022)."""
