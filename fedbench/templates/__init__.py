"""What `fedbench new` writes: working plugins called Mine, each with its test."""
