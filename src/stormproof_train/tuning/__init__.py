"""Finds a learning rate or batch size before training (``tune=``)."""
