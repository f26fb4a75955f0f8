"""Countdown with the wide rules, as the tiny model meets it."""

from maxent_grpo.pipeline.tasks import countdown
from maxent_grpo.pipeline.tiny.model import build_tokenizer
from maxent_grpo.pipeline.tiny.sampling import Task

TASK = Task(prompt=countdown.prompt, verify=countdown.verify)
TOKENIZER = build_tokenizer()
NAME = "countdown-wide"
MAX_NEW_TOKENS = 8  # the longest answers, (20-19)*18 and its like, with the end token
