"""Fuzzers over all that reads files; `python -m tests.fuzz --seconds 600` runs them for longer."""
