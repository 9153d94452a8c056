"""Data and scripts of the default demonstration."""
