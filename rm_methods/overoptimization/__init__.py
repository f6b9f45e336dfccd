"""Over-optimization: Best-of-N and PPO against a reward model, measured by a gold reward."""
