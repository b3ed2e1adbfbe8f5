"""Trains from this checkout: ``python train.py activation=elu``; ``stormproof-train`` runs what is installed."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "src"), str(HERE / "callbacks")]

from stormproof_train.cli import main

if __name__ == "__main__":
    sys.exit(main())
