"""Identifies the loss of a step and compares it with other predictions and targets."""
