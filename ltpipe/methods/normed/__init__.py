"""Normalised classifier and mask predictor with a fixed temperature."""
