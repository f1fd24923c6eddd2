"""Running: one cell, the cells of a grid, tuning, and what is done again with finished runs."""
