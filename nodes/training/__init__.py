"""A training run: what to distil, the session, and the file it leaves."""
