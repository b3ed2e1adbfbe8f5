"""A trained network made smaller, and taken to where it is used."""
