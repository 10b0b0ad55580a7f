"""Equalization loss (arXiv 2003.05176), DropLoss (AAAI 2021) and GOL (ECCV 2022)."""
