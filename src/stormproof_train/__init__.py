"""Trains networks that are configured with Hydra, using the callbacks of Stormproof."""
