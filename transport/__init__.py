"""Sockets, shared memory and process groups that carry frames, and the threads that watch them."""
