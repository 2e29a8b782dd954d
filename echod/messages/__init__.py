"""Messages: framing, and the rules of a conversation. Pure."""
