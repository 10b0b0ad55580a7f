"""FASA: feature augmentation and sampling adaptation (arXiv 2102.12867)."""
