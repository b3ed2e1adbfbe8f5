"""The command ``stormproof``."""
