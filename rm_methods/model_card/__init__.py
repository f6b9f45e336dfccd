"""The model card of a reward-model folder: its README.md in the format of the Hugging Face hub."""
