"""Other people's files, in and out: checkpoints, class indices, detections."""
