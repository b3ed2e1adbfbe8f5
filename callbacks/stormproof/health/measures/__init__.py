"""Quantities that several rules derive from a record."""
