"""Fine-tuning and pre-training, their checkpoints and callbacks."""
