"""echod beside its peers: `python -m bench` runs them in turns and compares them."""
