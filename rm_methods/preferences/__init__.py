"""What a preference is; readers of public formats; the controlled world; label noise; splits."""
