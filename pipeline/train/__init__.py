"""The command `python -m pipeline.train`.

Of other rooms only `evaluate` and `launch` import from it.
"""
