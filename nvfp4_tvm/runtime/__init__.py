"""Loading and running a compiled folder."""
