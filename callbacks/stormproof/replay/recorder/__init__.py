"""Records each optimizer step of a program that trains a model without changes to its code.

``bootstrap/sitecustomize.py`` runs in each Python process of the command. After the import of torch, it calls
:func:`stormproof.replay.recorder.install.install`, which hooks public functions of torch. The recorder draws no random
numbers, iterates no loader and keeps no module alive. Its own errors become events of the ledger.
"""
