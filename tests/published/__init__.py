"""What the repositories of the methods do and ltpipe itself has no use for; kept for comparison with their values."""
