"""HTML report of a hyperparameter search."""
