"""Says what happened to a run: its state, the first cause, what was lost and what to do.

From what the run has left, and from SLURM and the kernel where they can be asked. No torch.
"""
