"""``tune=``: a learning rate or a batch size to begin with, measured before anything is trained."""
