"""Selection: which units the model sees, in what mixture, and how much each counts, as one policy."""
