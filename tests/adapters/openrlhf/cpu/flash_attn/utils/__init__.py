"""Collectives of ring attention."""
