"""OpenAI's API: what it takes, and how answers are written."""
