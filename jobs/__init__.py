"""What `ray job submit` runs: each file is one command of `cardioray`, with its options."""
