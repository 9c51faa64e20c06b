"""An expert shard: handler (wire), pool (batches), runtime (owns the device), backend (math)."""
