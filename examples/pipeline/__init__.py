"""The pipeline: training from recipes, evaluation, rewards, tasks and data, around the adapter for TRL."""
