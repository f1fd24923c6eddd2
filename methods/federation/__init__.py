"""Federation strategies: one file each."""
