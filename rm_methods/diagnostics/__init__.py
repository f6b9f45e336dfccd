"""What a trained reward model looks at: attention by position, and its accuracy when the start of the text is hidden."""
