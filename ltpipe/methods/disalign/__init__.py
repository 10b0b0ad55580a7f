"""DisAlign: logits scaled and shifted per class, by a learnt confidence per RoI."""
