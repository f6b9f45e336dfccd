"""What an experiment will cost, before anyone submits it."""
