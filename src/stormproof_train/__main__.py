"""Runs the command ``stormproof-train`` as ``python -m stormproof_train``."""

import sys

from stormproof_train.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
