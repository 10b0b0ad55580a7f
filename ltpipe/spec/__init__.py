"""Experiments: typed models, loading, method catalogue, paths and digests. Never imports torch."""
