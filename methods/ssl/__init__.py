"""SSL methods: one file each."""
