"""Checks each service as a client would, and says what to do about what is wrong."""
