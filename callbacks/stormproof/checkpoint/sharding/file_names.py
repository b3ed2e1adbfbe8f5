"""Names of the files of a sharded checkpoint, which torch and Lightning expect."""

INDEX_FILE = ".metadata"
"""Names, shapes and positions of all tensors."""
REST_FILE = "meta.pt"
"""The rest of the checkpoint, without parameters and optimizer states."""
