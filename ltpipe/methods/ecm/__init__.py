"""Effective class-margin loss (ECCV 2022)."""
