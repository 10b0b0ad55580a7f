"""Foreground classification balance loss of BACL (TMM 2023)."""
