"""L0, the historical half: backfill, incremental, backup files, the ready flag, and their checks."""
