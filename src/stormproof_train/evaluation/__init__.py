"""What the predictions of a finished run are worth."""
