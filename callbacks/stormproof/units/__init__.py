"""Units of a network, and which of them are dead: those whose output never leaves one value."""
