"""What the command line does, behind :mod:`captum_causalseg.cli`."""
