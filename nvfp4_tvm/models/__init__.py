"""Config-driven decoder models."""
