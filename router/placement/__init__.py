"""Which shard holds which expert."""
