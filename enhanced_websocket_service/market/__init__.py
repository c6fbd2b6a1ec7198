"""The pure core: ticks, bars, calendar and rules. No I/O, no asyncio, no wall clock."""
