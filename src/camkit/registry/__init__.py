"""Plugins: finding, loading, options, and the scaffold of a new one."""
