"""Everything clients see: REST, WebSocket fan-out, metrics, the dashboard."""
