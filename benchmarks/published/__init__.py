"""Published tables: the numbers of others, as data."""
