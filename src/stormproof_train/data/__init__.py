"""LightningDataModules of the supported data sets, and their file readers and checks."""
