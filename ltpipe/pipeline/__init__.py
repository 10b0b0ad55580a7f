"""What runs: stages, paths, digests, sharing, and what the Snakemake rules ask. Never imports torch."""
