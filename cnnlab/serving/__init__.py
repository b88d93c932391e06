"""The server of a model."""
