"""The contract test: what every method must do, on small data; `rm-methods test-method` and tests/methods run it."""
