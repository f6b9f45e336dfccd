"""Training: batch plan, trainer, DeepSpeed configurations, resume."""
