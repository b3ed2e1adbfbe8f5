"""Runs ``stormproof-train`` from this checkout: ``python train.py activation=elu``."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOTS = [str(HERE / "src"), str(HERE / "callbacks")]
sys.path[:0] = ROOTS
# for jobs of a sweep that submitit starts on other machines
os.environ["PYTHONPATH"] = os.pathsep.join([*ROOTS, *filter(None, [os.environ.get("PYTHONPATH")])])

from stormproof_train.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
