"""Live tracking of runs: TensorBoard, Weights & Biases, MLflow."""
