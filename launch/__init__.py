"""Starts things: jobs and their monitoring. Never imports torch."""
