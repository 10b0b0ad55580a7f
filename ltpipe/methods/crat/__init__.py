"""CRAT: cross-class gradient transfusing."""
