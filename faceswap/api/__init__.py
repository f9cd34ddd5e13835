"""The HTTP and WebSocket surface: handlers of a few lines that find, call and answer."""
