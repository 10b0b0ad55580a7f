"""The stages: one short module each, with the order of calls and nothing else."""
