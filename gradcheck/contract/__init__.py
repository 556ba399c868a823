"""The promises of a pair that need no derivative."""
