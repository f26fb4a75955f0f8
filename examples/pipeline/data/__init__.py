"""What `train.py` is made of: arguments, prompts, the memory a run takes, and a model that needs no network."""
