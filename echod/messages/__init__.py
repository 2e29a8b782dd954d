"""Messages: how a stream is cut into them, and the rules of a conversation.  Pure."""
