"""One module for each framework whose functions can be checked; each is imported when its tensors are first met."""
