"""The papers' training columns as settings of a run, by what the models take; `encoders.recipes` chooses."""
