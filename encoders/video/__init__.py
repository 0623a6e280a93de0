"""Video encoders: one paper, one file."""
