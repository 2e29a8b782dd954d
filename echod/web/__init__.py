"""An HTTP server for short requests of a few clients, of which status and control are made."""
