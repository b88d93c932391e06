"""Serve a model over HTTP: routes for pictures and arrays, limits on requests, batches, metrics and a page."""
