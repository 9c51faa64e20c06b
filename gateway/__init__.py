"""The HTTP face: OpenAI-compatible API, chat template, tokenizer, parsers, limits, metrics."""
