"""Which model: register, promote, roll back, export, load."""
