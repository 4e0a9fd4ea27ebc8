"""An oracle behind HTTP: the server, and the oracles that ask it."""
