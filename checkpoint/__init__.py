"""A checkpoint on disk: configuration, tensors by byte range, checks, tokenizer and chat template."""
