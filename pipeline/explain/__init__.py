"""Says what happened to a run, the first cause, what was lost and what to do; and compares runs.

From what the run has left, and from SLURM and the kernel where they can be asked. No torch.
"""
