"""Recording for a server that may be unreachable, and copies between stores."""
