"""Simple methods that a network must beat, fitted and measured on the same users and events."""
