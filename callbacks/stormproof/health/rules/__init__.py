"""Rules that turn the record of a training run into findings."""
