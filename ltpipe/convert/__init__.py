"""Readers of released checkpoints and side files: from their layouts to ltpipe's."""
