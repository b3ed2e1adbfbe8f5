"""Data sets, one a file: each a LightningDataModule that knows its shapes before it reads a file."""
