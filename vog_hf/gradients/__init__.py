"""Room gradients."""
