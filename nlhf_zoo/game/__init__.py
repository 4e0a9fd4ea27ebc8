"""The online game: the loop, its parts, and where it stands."""
