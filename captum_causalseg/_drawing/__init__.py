"""The parts that :mod:`captum_causalseg.visualization` draws with."""
