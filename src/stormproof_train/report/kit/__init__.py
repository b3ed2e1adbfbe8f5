"""Charts, tables and sections for reports of every kind."""
