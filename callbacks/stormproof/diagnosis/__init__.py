"""What TrainingHealth measures, and what it makes of it."""
