"""Models that read texts: loading, encoding, heads."""
