"""Trunks: networks that carry a user's state from event to event, one a file, one interface."""
