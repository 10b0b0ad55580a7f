"""What keeps results safe: atomic files, locks, records, status, launching, time limits, Slurm. Never imports torch."""
