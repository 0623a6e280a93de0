"""Layers that several papers share; a layer moves here once a third model needs it."""
