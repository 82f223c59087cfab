"""Shows a run in other programs: TensorBoard and MLflow. Only reads the run's files."""
