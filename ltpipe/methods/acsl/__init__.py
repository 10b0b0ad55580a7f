"""Adaptive class suppression loss (CVPR 2021)."""
