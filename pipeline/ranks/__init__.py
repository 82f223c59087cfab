"""The ranks of a job: who they are, how they talk, stop and fail together.

Not what they compute.
"""
