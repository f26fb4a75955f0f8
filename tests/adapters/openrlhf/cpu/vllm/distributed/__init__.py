"""How OpenRLHF sends weights."""
