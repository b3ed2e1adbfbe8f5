"""The application: trains networks that Hydra configs put together, with Stormproof's callbacks."""
