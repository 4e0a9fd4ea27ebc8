"""People who vote on a page."""
