"""Published checkpoints under our parameter names.

`rules` says how a table is written and applied, `flax` reads the files of the public JAX code without JAX, and each
other file is the table of one model. Nothing here builds or runs a model.
"""
