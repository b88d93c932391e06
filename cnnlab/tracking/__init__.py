"""Everything that reads or writes the MLflow store."""
