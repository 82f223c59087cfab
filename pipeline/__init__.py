"""Trains, evaluates and reports on shard sets, on one process or many."""
