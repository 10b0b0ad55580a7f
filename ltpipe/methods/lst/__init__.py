"""Learning to segment the tail (arXiv 2004.00900): what the incremental phases add to a detector."""
