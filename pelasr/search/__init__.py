"""Searches for the best label sequence."""
