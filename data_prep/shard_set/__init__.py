"""The contract with the trainer: manifest, index, files, pixels, `.beton`.

Imports nothing of ours.
"""
