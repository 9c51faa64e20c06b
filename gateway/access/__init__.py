"""Where the API listens, and which keys it takes."""
