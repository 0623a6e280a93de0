"""Models that turn clips into features, heads that turn features into predictions, and their training.

Knows nothing of packets, streams or imputation. Importing this package imports no torch.
"""
