"""What is wrong with a wrong gradient: where, in which pattern, and in which of its terms."""
