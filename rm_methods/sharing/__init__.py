"""What leaves the machine: a model folder with its card, as a copy or on the Hugging Face hub."""
