"""The experiment of curri-MAE and beyond it: every way to answer from damaged windows, on equal terms."""
