"""Model factories, backbones, and model files."""
