"""Shows a run in other programs: TensorBoard, MLflow, W&B, trackio. Only reads the run's files."""
