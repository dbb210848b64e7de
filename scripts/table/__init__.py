"""``pcm table``: systems by step counts, generated, measured and written as a table, from a file that says which."""
