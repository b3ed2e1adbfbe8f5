"""What makes a loader resume exactly: the order of its batches, and the random numbers of each sample."""
