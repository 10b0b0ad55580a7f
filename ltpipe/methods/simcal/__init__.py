"""SimCal: a second classifier on class-balanced proposals (arXiv 2007.11978)."""
