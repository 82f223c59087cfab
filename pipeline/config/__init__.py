"""What a run is: its fields, its recipes, and how both are read and saved.

No torch, no files of a run.
"""
