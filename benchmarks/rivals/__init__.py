"""What people run today: each a plain script, run beside us by a benchmark."""
