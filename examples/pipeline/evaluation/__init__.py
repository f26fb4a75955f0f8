"""What `evaluate.py` is made of: what is asked, how it is sampled, the curves over k, and their report."""
