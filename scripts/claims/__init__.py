"""What an article claims of activations, measured: one kind of experiment a file, ``table`` lists the claims."""
