"""The command ``predict``: an artifact on files, on a machine that need not have torch."""
