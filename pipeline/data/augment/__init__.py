"""From stored pixels to the network's input: crops, flips, colour, normalization.

Reads no images.
"""
