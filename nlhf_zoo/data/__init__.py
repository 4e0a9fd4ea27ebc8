"""Games, votes, tables and prompts."""
