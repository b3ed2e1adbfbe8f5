"""One page that tells what a hyperparameter search came to."""
