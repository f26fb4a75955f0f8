"""Collectives of ring attention."""

all_gather = None
