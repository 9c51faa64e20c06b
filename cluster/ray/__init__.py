"""Ray's processes and the actors that workers are."""
