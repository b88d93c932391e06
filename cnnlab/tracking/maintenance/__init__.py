"""Checks and repairs of a store, for `cnnlab doctor` and `cnnlab gc`."""
