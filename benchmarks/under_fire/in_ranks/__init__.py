"""A folder on the `PYTHONPATH` of all processes of the job under fire."""
