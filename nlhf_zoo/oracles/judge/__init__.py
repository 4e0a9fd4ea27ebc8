"""A language model behind an endpoint as the judge."""
