"""IIF: inverse image frequency (arXiv 2209.04861)."""
