"""Generates the table of ``experiment=table``: 500 synthetic deliveries with missing cells.

    python scripts/examples/make_deliveries.py src/stormproof_train/examples/deliveries.csv

The duration depends on distance, vehicle, district, number of parcels and rain, with noise of 2 minutes. The best
possible prediction therefore has an RMSE of about 2, and a larger one in rows with missing cells.
"""

import sys
from pathlib import Path

import numpy as np

MINUTES_PER_KM = {"bike": 3.6, "van": 2.0, "truck": 2.6}
TRAFFIC = {"centre": 1.6, "harbour": 1.2, "suburb": 1.0, "village": 0.8}
ROWS = 500


def rows(generator: np.random.Generator) -> list[str]:
    deliveries = []
    for _ in range(ROWS):
        vehicle = str(generator.choice(list(MINUTES_PER_KM), p=[0.3, 0.5, 0.2]))
        district = str(generator.choice(list(TRAFFIC)))
        distance = generator.uniform(0.5, 6.0 if vehicle == "bike" else 15.0)
        parcels = int(generator.integers(1, 7))
        raining = bool(generator.random() < 0.3)
        minutes = distance * MINUTES_PER_KM[vehicle] * TRAFFIC[district] + 1.5 * parcels
        minutes = minutes * (1.25 if raining and vehicle == "bike" else 1.0) + generator.normal(0, 2)
        cells = [f"{distance:.1f}", str(parcels), vehicle, district, str(raining).lower()]
        cells = ["" if generator.random() < 0.03 else cell for cell in cells]
        deliveries.append(",".join([*cells, f"{max(1.0, minutes):.1f}"]))
    return deliveries


if __name__ == "__main__":
    table = ["distance_km,parcels,vehicle,district,raining,minutes", *rows(np.random.default_rng(0))]
    Path(sys.argv[1]).write_text("\n".join(table) + "\n")
