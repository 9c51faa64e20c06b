"""One layer's rows on their way to expert shards and back."""
