"""The one loop, and what it needs besides an engine."""
