"""The wire: what packets and predictions look like as bytes."""
