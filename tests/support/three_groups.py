"""Three groups of four: one with differences, one of equal utilities with a masked entry, one of failures."""

import math

import torch

import maxent_grpo as mg
from maxent_grpo import MaxEntConfig, MaxEntObjective

NAN = math.nan
UTILITIES = torch.tensor([[1.0, 0.0, 0.5, 0.0], [1.0, 1.0, 1.0, 9.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
MASK = torch.tensor([[True] * 4, [True, True, True, False], [True] * 4])
LENGTHS = torch.tensor([[3, 2, 1, 4], [2, 2, 5, 1], [1, 2, 3, 4]])
KEYS = torch.tensor([[5, 6, 7, 6], [1, 1, 2, 1], [3, 3, 3, 3]])
REF = -torch.tensor([[3.0, 1.0, 2.0, 8.0], [1.0, 4.0, 2.0, NAN], [1.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
OLD = -torch.tensor([[2.0, 2.0, 1.0, 6.0], [3.0, 1.0, 5.0, NAN], [2.0, 1.0, 1.0, 4.0]], dtype=torch.float64)


def build(**fields):
    objective = MaxEntObjective(MaxEntConfig(**fields))
    target = objective.target(UTILITIES, mask=MASK, lengths=LENGTHS, ref_logps=REF, old_logps=OLD, keys=KEYS)
    return objective, target


def coefficients(**fields):
    objective, target = build(**fields)
    return objective.coefficients(target, old_logps=OLD)


def plain_target(utilities=UTILITIES, anchors=None, tau=0.2, beta=0.0, mask=MASK):
    q = mg.listwise_q(utilities, mask=mask)
    return mg.tempered_target(q, anchors, tau=tau, beta=beta, mask=mask)
