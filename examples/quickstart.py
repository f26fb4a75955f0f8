"""Train a small language model on Countdown with Dr.GRPO and with MaxEnt-GRPO, on a CPU, and compare them.

python examples/quickstart.py            # about three minutes of training on 2 cores; --help lists the options
"""

from maxent_grpo.pipeline.tiny.demo import main

if __name__ == "__main__":
    raise SystemExit(main())
