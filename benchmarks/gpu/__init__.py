"""All that is to be known from one GPU in a few minutes: `python -m benchmarks.gpu`."""
