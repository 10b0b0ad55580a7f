"""From detections to numbers, figures and the report; needs no deep learning framework."""
