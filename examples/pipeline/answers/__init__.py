"""Answers to mathematics problems: found in a completion, brought to one spelling, or compared as mathematics."""
