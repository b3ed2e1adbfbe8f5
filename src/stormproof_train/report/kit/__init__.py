"""Charts, tables and sections of HTML reports."""
