"""Audio encoders and their front ends: one paper, one file."""
