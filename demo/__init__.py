"""The demo checkpoint: scenes we draw ourselves, the scripts that learn them, the weights that came out."""
