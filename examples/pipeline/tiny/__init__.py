"""A language model small enough to train with reinforcement learning on a CPU in a minute, and what it takes."""
