"""Experiments: typed blocks, loading with file and line of every key, options, checks. Never imports torch."""
