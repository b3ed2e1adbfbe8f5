"""Generated pages of the documentation site, and the extensions that render its docstrings."""
