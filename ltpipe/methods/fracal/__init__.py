"""FRACAL: logits shifted by class frequency and by the fractal dimension of where objects lie."""
