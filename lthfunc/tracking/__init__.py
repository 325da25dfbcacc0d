"""Runs told to other programs while they go on: TensorBoard, Weights & Biases, MLflow."""
