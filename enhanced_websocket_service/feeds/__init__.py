"""Where prices come from during a session: each feed yields batches of quotes."""
