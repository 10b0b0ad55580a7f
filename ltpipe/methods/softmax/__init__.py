"""The baseline: softmax cross entropy."""
