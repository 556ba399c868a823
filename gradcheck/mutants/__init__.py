"""The set that grades the checker: right pairs, their wrong twins, and the matrix of who was caught."""
