"""The attribution classes that Captum users meet."""
