"""The servers that echod is compared with; each does the same work in its own way."""
