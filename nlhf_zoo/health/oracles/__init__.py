"""What an oracle is like: its answers, and the figures that are read from them."""
