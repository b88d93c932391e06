"""Image sets: read, decoded, split and batched."""
