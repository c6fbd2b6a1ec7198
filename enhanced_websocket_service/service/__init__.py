"""The running service: states, the tick's path, supervision and wiring."""
