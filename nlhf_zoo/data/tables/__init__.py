"""Games as tables: files, votes, generators, the small language."""
