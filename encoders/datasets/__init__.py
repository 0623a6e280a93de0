"""Readers that list samples (path, span, label, split), and the one way a span is decoded."""
