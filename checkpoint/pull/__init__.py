"""A checkpoint copied over HTTP into a directory: resumed where it was broken off, and checked."""
