"""Finds all that is wrong with a shard set. Imports nothing that writes one."""
