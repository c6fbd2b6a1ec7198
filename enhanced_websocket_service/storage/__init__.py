"""What outlives the process: the tick journal, PostgreSQL, and the private servers of `demo`."""
