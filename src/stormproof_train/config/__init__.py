"""From Hydra configs to signatures: choices, overrides, identity."""
