"""What happened: tracker -> journal -> courier -> sink. No torch, no Lightning, no waiting for a network."""
