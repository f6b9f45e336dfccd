"""Training methods.  One method = one `<name>.py` and its card `<name>.yaml` in this folder; see registry.py."""
