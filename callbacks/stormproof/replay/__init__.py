"""Recording, comparing and certifying training runs."""
