"""Slicing: groups of images on which a network fails more than on the rest. NumPy and scikit-learn; no Ray, no I/O."""
