"""RF source localization: where a transmitter stands, and how sure we are, from the power at several receivers."""
