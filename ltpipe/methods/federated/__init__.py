"""Federated loss (CenterNet2, Detic)."""
