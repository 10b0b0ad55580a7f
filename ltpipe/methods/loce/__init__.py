"""LOCE: exploring classification equilibrium (ICCV 2021)."""
