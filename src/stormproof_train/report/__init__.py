"""One page that tells what a run, or several, came to."""
