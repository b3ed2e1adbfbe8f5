"""What a run sends to Weights & Biases."""
