"""Room metric."""
