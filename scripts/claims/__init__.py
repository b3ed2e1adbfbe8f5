"""What an article claims of activations, measured: one kind of experiment a file, ``all_claims`` lists the claims."""
