"""Hard conditions, as commands: `python -m tests.torture fuzz | kill | flips | disk | memory`."""
