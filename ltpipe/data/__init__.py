"""Torch-free data layer: annotation store, class statistics, splits, replay, index samplers, plans and toy data."""
