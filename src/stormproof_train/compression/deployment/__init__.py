"""Files that a machine without torch runs, and what they cost there."""
