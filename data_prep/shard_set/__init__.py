"""The contract with the trainer: manifest, index, files, pixels, `.beton`; and what all rooms
share: files, fields, metrics and command lines.

Imports nothing of ours.
"""
