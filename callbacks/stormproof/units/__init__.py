"""Detection of dead units. A unit is dead if its output is constant."""
