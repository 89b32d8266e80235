"""Bad input of every kind, made from a seed: what is given, what must come of it. Driven by ``tests/test_bad_input.py``."""
