"""The arithmetic. Shapes: T tokens, H hidden, F expert width, E experts, K top-k, N routes, R rows, P page."""
