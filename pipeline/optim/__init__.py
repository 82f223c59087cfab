"""One update: optimizer, schedule, precision, and the replica that keeps all copies equal.

No data.
"""
