"""Fuzz targets: each module has ``one(data: bytes)``, which returns for any bytes and raises for a mistake of ours.

    python -m tests.fuzz.recording -max_total_time=60        needs atheris, which is no dependency

What was found worth keeping lies in ``tests/data/fuzz/<target>/`` and is replayed by tests/test_fuzz_corpus.py.
"""
