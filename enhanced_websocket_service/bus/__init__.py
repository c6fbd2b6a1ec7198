"""Publish, subscribe, latest price: in this process alone, or also over Redis."""
