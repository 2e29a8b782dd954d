"""The log: selects lines, formats them, and writes them."""
