"""Stubs written by `make proto`; never edited."""
