"""Typed role configuration from file, environment and flags."""
