"""A model's tokens read into one stream of events."""
