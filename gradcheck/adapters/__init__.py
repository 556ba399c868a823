"""One module for each framework whose functions can be checked, imported when its tensors are first met."""
