"""The `cnnlab` command."""
