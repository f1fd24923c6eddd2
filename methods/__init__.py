"""Built-in plugins: federation strategies and SSL methods, each found by its file name."""
