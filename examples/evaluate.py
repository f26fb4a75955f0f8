"""Measure how accurate and how varied checkpoints are: pass@k, mean@k, distinct@k and coverage@k, with intervals.

python examples/evaluate.py runs/demo/seed0/maxent --task countdown-wide --samples 64 --max_new_tokens 8
"""

from maxent_grpo.pipeline.evaluate import main

if __name__ == "__main__":
    main()
