"""The lanes to expert shards."""
