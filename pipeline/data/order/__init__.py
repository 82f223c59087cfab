"""Which sample is read when, by whom, and which shard that needs: pure functions.

No torch, no files.
"""
