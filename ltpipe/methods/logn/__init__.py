"""LogN: logits normalised by their statistics over training RoIs."""
