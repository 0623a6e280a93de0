"""Models of sound and picture together: one paper, one file."""
