"""tau-normalisation of the classifier's rows."""
