"""One module a command; each exposes a click command named ``command`` and imports nothing heavy at import."""
