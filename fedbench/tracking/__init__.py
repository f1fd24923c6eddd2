"""Results: run directories (the record), their W&B mirror, and the leaderboard computed from the files."""
