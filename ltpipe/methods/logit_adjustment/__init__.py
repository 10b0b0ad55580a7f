"""Post-hoc logit adjustment by the class prior."""
