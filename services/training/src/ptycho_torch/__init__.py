"""The old names of the ptychography commands, a few lines each; the work is done in heimdall."""
