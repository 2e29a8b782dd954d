"""The log: which lines are written, how, and where to."""
