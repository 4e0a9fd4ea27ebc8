"""What `nlhf oracle` asks, computes and draws."""
