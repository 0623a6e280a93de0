"""The recipe of the default bundle ``talk``: data, conditions, training, scores, and the bundle they make.

Only the command ``legato bundle train-talk`` and the benches import this package; serving does not need it.
"""
