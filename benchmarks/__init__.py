"""One runnable file for each claim of the README; `python -m benchmarks.NAME --help`."""
