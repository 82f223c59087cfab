"""The live page: how all runs of a folder stand, served on loopback. It changes nothing."""
