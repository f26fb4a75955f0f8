"""Bad input of the functions is a ValueError that says what was expected and what came."""

import math

import pytest
import torch

import maxent_grpo as mg
from maxent_grpo.groups import completion_keys

INF, NAN = math.inf, math.nan
Q = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
LOG_Q = Q.log()
WIDE = torch.zeros(2, 3)
INTS = torch.zeros(2, 2, dtype=torch.int64)
GENERATOR = torch.Generator()
SHORT_MASK = torch.ones(2, dtype=torch.bool)
LOGPS, TOKENS = torch.zeros(2, 2, 3), torch.ones(2, 2, 3, dtype=torch.bool)
CLIPS = {"clip_low": 0.2, "clip_high": 0.2, "max_length": 8}


def nll(weights=Q, mask=TOKENS, logps=LOGPS, **options):
    return mg.maxent_weighted_nll(logps, weights, mask, **options)


def surrogate(old=LOGPS, coefficients=Q, mask=TOKENS, **options):
    return mg.clipped_surrogate(LOGPS, old, coefficients, mask, **{**CLIPS, **options})


def prune(keep, coefficients=Q, generator=GENERATOR):
    return mg.prune_candidates(coefficients, keep=keep, generator=generator)


TABLE = {
    "utilities given as a list": (
        lambda: mg.listwise_q([0.0, 1.0]),
        "Expected utilities to be a torch.Tensor, got utilities of type list.",
    ),
    "no candidate dimension": (
        lambda: mg.listwise_q(torch.tensor(1.0)),
        "Expected utilities of shape [..., K] with K >= 1, got utilities of shape [].",
    ),
    "no candidates": (
        lambda: mg.listwise_log_q(torch.zeros(2, 0)),
        "Expected utilities of shape [..., K] with K >= 1, got utilities of shape [2, 0].",
    ),
    "zero temperature": (
        lambda: mg.listwise_q(Q, temperature=0.0),
        "Expected temperature > 0, got temperature=0.0.",
    ),
    "negative temperature": (
        lambda: mg.listwise_log_q(Q, temperature=-1),
        "Expected temperature > 0, got temperature=-1.",
    ),
    "NaN temperature": (lambda: mg.listwise_q(Q, temperature=NAN), "Expected temperature > 0, got temperature=nan."),
    "temperature of another kind": (
        lambda: mg.listwise_q(Q, temperature="hot"),
        "Expected temperature to be a number, got temperature='hot'.",
    ),
    "temperatures of another shape": (
        lambda: mg.listwise_q(Q, temperature=torch.ones(3)),
        "Expected temperature to be a number or of shape [2], got temperature of shape [3].",
    ),
    "one temperature a candidate": (
        lambda: mg.listwise_log_q(Q[0], temperature=torch.ones(2)),
        "Expected temperature to be a number or of shape [], got temperature of shape [2].",
    ),
    "taus of another shape": (
        lambda: mg.tempered_target(Q, tau=torch.ones(3)),
        "Expected tau to be a number or of shape [2], got tau of shape [3].",
    ),
    "betas of another shape": (
        lambda: mg.tempered_target(Q, LOG_Q, tau=1.0, beta=torch.ones(2, 2)),
        "Expected beta to be a number or of shape [2], got beta of shape [2, 2].",
    ),
    "a gap's taus of another shape": (
        lambda: mg.improvement_gap(LOG_Q[0], LOG_Q[0], tau=torch.ones(2)),
        "Expected tau to be a number or of shape [], got tau of shape [2].",
    ),
    "sizes of another shape": (
        lambda: mg.tau_for_ess(LOG_Q, ess=torch.ones(3)),
        "Expected ess to be a number or of shape [2], got ess of shape [3].",
    ),
    "negative eps": (lambda: mg.listwise_q(Q, eps=-0.1), "Expected eps >= 0, got eps=-0.1."),
    "K eps above one": (lambda: mg.listwise_q(Q, eps=0.6), "Expected K*eps <= 1 with K=2 candidates, got eps=0.6."),
    "mask of another shape": (
        lambda: mg.listwise_q(Q, mask=SHORT_MASK),
        "Expected mask of shape [2, 2], got mask of shape [2].",
    ),
    "mask of another dtype": (
        lambda: mg.listwise_q(Q, mask=INTS),
        "Expected mask of dtype torch.bool, got mask of dtype torch.int64.",
    ),
    "mask of another kind": (
        lambda: mg.listwise_q(Q, mask=[True, False]),
        "Expected mask to be a torch.Tensor, got mask of type list.",
    ),
    "q given as a list": (
        lambda: mg.tempered_target([0.5, 0.5], tau=1.0),
        "Expected q to be a torch.Tensor, got q of type list.",
    ),
    "negative tau": (lambda: mg.tempered_target(Q, tau=-1.0), "Expected tau >= 0, got tau=-1.0."),
    "NaN tau": (lambda: mg.tempered_log_target(LOG_Q, tau=NAN), "Expected tau >= 0, got tau=nan."),
    "negative beta": (lambda: mg.tempered_target(Q, Q, tau=1.0, beta=-2), "Expected beta >= 0, got beta=-2."),
    "both infinite": (
        lambda: mg.tempered_target(Q, Q, tau=INF, beta=INF),
        "Expected tau or beta to be finite, got tau=inf, beta=inf.",
    ),
    "beta without anchors": (
        lambda: mg.tempered_target(Q, tau=1.0, beta=0.1),
        "Expected anchor_logps with beta > 0, got anchor_logps=None and beta=0.1.",
    ),
    "beta of each group without anchors": (
        lambda: mg.tempered_target(Q, tau=1.0, beta=torch.zeros(2)),
        "Expected anchor_logps with beta > 0, got anchor_logps=None",
    ),
    "anchors of another shape": (
        lambda: mg.tempered_target(Q, WIDE, tau=1.0, beta=0.1),
        "Expected anchor_logps of shape [2, 2], got anchor_logps of shape [2, 3].",
    ),
    "weights to centre given as a number": (
        lambda: mg.center_weights(1.0),
        "Expected weights to be a torch.Tensor, got weights of type float.",
    ),
    "keys that are floats": (
        lambda: mg.duplicate_counts(Q),
        "Expected keys of an integer dtype, got keys of dtype torch.float32.",
    ),
    "keys that are a mask": (
        lambda: mg.duplicate_counts(INTS.bool()),
        "Expected keys of an integer dtype, got keys of dtype torch.bool.",
    ),
    "strength above one": (
        lambda: mg.discount_duplicates(Q, INTS, strength=1.1),
        "Expected strength >= 0 and <= 1, got strength=1.1.",
    ),
    "counts of another shape": (
        lambda: mg.discount_duplicates(Q, WIDE, strength=1.0),
        "Expected counts of shape [2, 2], got counts of shape [2, 3].",
    ),
    "log weights given as a list": (
        lambda: mg.discount_log_weights([0.0], INTS, strength=1.0),
        "Expected log_weights to be a torch.Tensor, got log_weights of type list.",
    ),
    "utilities to rank": (lambda: mg.rank_utilities(Q, mask=SHORT_MASK), "got mask of shape [2]."),
    "utilities to standardise": (lambda: mg.standardize_utilities(Q, mask=SHORT_MASK), "got mask of shape [2]."),
    "utilities to compare": (lambda: mg.informative_groups(Q, mask=SHORT_MASK), "got mask of shape [2]."),
    "ess below one": (lambda: mg.tau_for_ess(LOG_Q, ess=0.5), "Expected ess >= 1, got ess=0.5."),
    "infinite beta for ess": (lambda: mg.tau_for_ess(LOG_Q, Q, ess=1.5, beta=INF), "got beta=inf."),
    "beta without anchors for ess": (
        lambda: mg.tau_for_ess(LOG_Q, ess=1.5, beta=0.1),
        "Expected anchor_logps with beta > 0, got anchor_logps=None and beta=0.1.",
    ),
    "anchors of another shape for ess": (
        lambda: mg.tau_for_ess(LOG_Q, WIDE, ess=1.5, beta=0.1),
        "Expected anchor_logps of shape [2, 2], got anchor_logps of shape [2, 3].",
    ),
    "potential at infinite tau": (
        lambda: mg.regularized_potential(Q, LOG_Q, tau=INF),
        "Expected tau and beta to be finite, got tau=inf, beta=0.0.",
    ),
    "optimum at infinite beta": (
        lambda: mg.optimal_potential(LOG_Q, Q, tau=0.0, beta=INF),
        "Expected tau and beta to be finite, got tau=0.0, beta=inf.",
    ),
    "gap at negative tau": (lambda: mg.improvement_gap(LOG_Q, LOG_Q, tau=-1), "Expected tau >= 0, got tau=-1."),
    "gap without anchors": (
        lambda: mg.improvement_gap(LOG_Q, LOG_Q, tau=1, beta=1),
        "Expected anchor_logps with beta > 0, got anchor_logps=None and beta=1.",
    ),
    "policy and q of unequal shapes": (
        lambda: mg.regularized_potential(Q, WIDE, tau=1.0),
        "Expected log_q of shape [2, 2], got log_q of shape [2, 3].",
    ),
    "anchors of another shape in the optimum": (
        lambda: mg.optimal_potential(LOG_Q, WIDE, tau=1.0, beta=1.0),
        "Expected anchor_logps of shape [2, 2], got anchor_logps of shape [2, 3].",
    ),
    "target and policy of unequal shapes": (
        lambda: mg.forward_kl(LOG_Q, WIDE),
        "Expected log_policy of shape [2, 2], got log_policy of shape [2, 3].",
    ),
    "weights without a dimension": (
        lambda: mg.effective_sample_size(torch.tensor(1.0)),
        "Expected weights of shape [..., K] with K >= 1, got weights of shape [].",
    ),
    "logps given as a list": (
        lambda: nll(logps=[1.0]),
        "Expected logps to be a torch.Tensor, got logps of type list.",
    ),
    "logps without tokens": (
        lambda: nll(logps=torch.zeros(3)),
        "Expected logps of shape [..., K, T], got logps of shape [3].",
    ),
    "token mask of another shape": (
        lambda: nll(mask=TOKENS[..., :2]),
        "Expected mask of shape [2, 2, 3], got mask of shape [2, 2, 2].",
    ),
    "token mask of another dtype": (
        lambda: nll(mask=TOKENS.float()),
        "Expected mask of dtype torch.bool, got mask of dtype torch.float32.",
    ),
    "weights of another shape": (lambda: nll(WIDE), "Expected weights of shape [2, 2], got weights of shape [2, 3]."),
    "both normalisations": (
        lambda: nll(length_normalize=True, max_length=8),
        "Expected length_normalize or max_length, not both, got max_length=8.",
    ),
    "no maximal length": (lambda: nll(max_length=0), "Expected max_length > 0, got max_length=0."),
    "no groups": (lambda: nll(num_groups=0), "Expected num_groups > 0, got num_groups=0."),
    "token scale of another shape": (
        lambda: nll(token_scale=WIDE),
        "Expected token_scale of shape [2, 2, 3], got token_scale of shape [2, 3].",
    ),
    "cross-entropy weights of another shape": (
        lambda: mg.listwise_cross_entropy(Q, WIDE),
        "Expected weights of shape [2, 2], got weights of shape [2, 3].",
    ),
    "cross-entropy over negative groups": (
        lambda: mg.listwise_cross_entropy(Q, Q, num_groups=-1),
        "Expected num_groups > 0, got num_groups=-1.",
    ),
    "cross-entropy mask": (
        lambda: mg.listwise_cross_entropy(Q, Q, mask=INTS),
        "Expected mask of dtype torch.bool, got mask of dtype torch.int64.",
    ),
    "old logps of another shape": (
        lambda: surrogate(old=WIDE),
        "Expected old_logps of shape [2, 2, 3], got old_logps of shape [2, 3].",
    ),
    "coefficients of another shape": (
        lambda: surrogate(coefficients=WIDE),
        "Expected coefficients of shape [2, 2], got coefficients of shape [2, 3].",
    ),
    "lower clip above one": (
        lambda: surrogate(clip_low=1.5),
        "Expected clip_low >= 0 and <= 1, got clip_low=1.5.",
    ),
    "negative upper clip": (lambda: surrogate(clip_high=-0.1), "Expected clip_high >= 0, got clip_high=-0.1."),
    "surrogate without length": (lambda: surrogate(max_length=0), "Expected max_length > 0, got max_length=0."),
    "surrogate over no groups": (lambda: surrogate(num_groups=0.0), "Expected num_groups > 0, got num_groups=0.0."),
    "flat given as a list": (
        lambda: mg.pad_groups([1.0], [1]),
        "Expected flat to be a torch.Tensor, got flat of type list.",
    ),
    "flat of one number": (
        lambda: mg.pad_groups(torch.tensor(1.0), [1]),
        "Expected flat of shape [N, ...], got flat=tensor(1.).",
    ),
    "a group size that is one number": (
        lambda: mg.pad_groups(torch.zeros(1), torch.tensor(1)),
        "Expected group_sizes to be a list of whole sizes >= 0, got group_sizes=1.",
    ),
    "group sizes that are a number": (
        lambda: mg.pad_groups(torch.zeros(8), 8),
        "Expected group_sizes to be a list of whole sizes >= 0, got group_sizes=8.",
    ),
    "group sizes of no kind": (
        lambda: mg.pad_groups(torch.zeros(1), ["a"]),
        "Expected group_sizes to be a list of whole sizes >= 0, got group_sizes=['a'].",
    ),
    "group sizes that are fractions": (
        lambda: mg.pad_groups(torch.zeros(2), [1.5, 0.5]),
        "Expected group_sizes to be a list of whole sizes >= 0, got group_sizes=[1.5, 0.5].",
    ),
    "group sizes that are huge": (
        lambda: mg.pad_groups(torch.zeros(2), [10**400]),
        "Expected group_sizes to be a list of whole sizes >= 0, got group_sizes=[1000",
    ),
    "no group sizes": (
        lambda: mg.pad_groups(torch.zeros(2), None),
        "Expected group_sizes to be a list of whole sizes >= 0, got group_sizes=None.",
    ),
    "negative group size": (
        lambda: mg.pad_groups(torch.zeros(1), [2, -1]),
        "Expected group_sizes to be a list of whole sizes >= 0, got group_sizes=[2, -1].",
    ),
    "nested group sizes": (
        lambda: mg.pad_groups(torch.zeros(2), torch.ones(1, 2, dtype=torch.int64)),
        "Expected group_sizes to be a list of whole sizes >= 0, got group_sizes=[[1, 1]].",
    ),
    "group sizes of another total": (
        lambda: mg.pad_groups(torch.zeros(3), [1, 1]),
        "Expected group_sizes to sum to the 3 rows, got group_sizes=[1, 1].",
    ),
    "flattening one number": (
        lambda: mg.flatten_groups(torch.tensor(1.0), torch.tensor(True)),
        "Expected padded of shape [G, K, ...], got padded of shape [].",
    ),
    "flattening with another mask": (
        lambda: mg.flatten_groups(WIDE, SHORT_MASK),
        "Expected mask of shape [2, 3], got mask of shape [2].",
    ),
    "ids that are floats": (
        lambda: completion_keys(LOGPS, TOKENS),
        "Expected ids of an integer dtype, got ids of dtype torch.float32.",
    ),
    "ids with a mask of another shape": (
        lambda: completion_keys(INTS, SHORT_MASK),
        "Expected mask of shape [2, 2], got mask of shape [2].",
    ),
    "keeping nothing": (lambda: prune(0.0), "Expected keep > 0 and <= 1, got keep=0.0."),
    "keeping more than all": (lambda: prune(1.5), "Expected keep > 0 and <= 1, got keep=1.5."),
    "no generator": (lambda: prune(0.5, generator=None), "Expected a torch.Generator, got generator=None."),
    "a seed in place of a generator": (
        lambda: prune(0.5, generator=3),
        "Expected a torch.Generator, got generator=3.",
    ),
    "coefficients given as a list": (
        lambda: prune(0.5, [1.0]),
        "Expected coefficients to be a torch.Tensor, got coefficients of type list.",
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_says_what_was_expected_and_what_came(case):
    call, message = TABLE[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert message in str(error.value)
