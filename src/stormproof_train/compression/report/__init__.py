"""One page that tells what a compression came to."""
