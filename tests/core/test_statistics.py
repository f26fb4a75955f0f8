"""What is logged of targets, and of a policy on their candidates."""

import pytest
import torch
from torch.testing import assert_close

import maxent_grpo as mg
from maxent_grpo import MaxEntConfig, MaxEntObjective
from support.strategies import INF
from support.three_groups import LENGTHS, MASK, OLD, REF, UTILITIES, build

pytestmark = pytest.mark.numerical


class TestStatistics:
    def test_are_the_means_of_their_functions(self):
        objective, target = build(beta=0.3, dedup=0.5)
        statistics = objective.statistics(target, policy_logps=OLD)
        log_policy = OLD.masked_fill(~MASK, -INF).log_softmax(-1)
        log_rho = (REF / LENGTHS).masked_fill(~MASK, -INF).log_softmax(-1)
        knobs = {"tau": 0.2, "beta": 0.3, "mask": MASK}
        w, log_w = target.weights, target.log_weights
        expected = {
            "ess": mg.effective_sample_size(w).mean(),
            "weight_entropy": -torch.where(w > 0, w * log_w, 0.0).sum(-1).mean(),
            "max_weight": w.amax(-1).mean(),
            "frac_uninformative_groups": torch.tensor(2 / 3, dtype=torch.float64),
            "kl_target_anchor": torch.where(MASK, w * (log_w - log_rho), 0.0).sum(-1).mean(),
            "potential": mg.regularized_potential(log_policy.exp(), target.log_q, log_rho, **knobs).mean(),
            "improvement_gap": mg.improvement_gap(log_policy, target.log_q, log_rho, **knobs).mean(),
            "forward_kl": torch.where(MASK, w * (log_w - log_policy), 0.0).sum(-1).mean(),
            # Of the right ones, keys 5, 7 and 1, 1, 2: all different, and two of three; the third group has none.
            "frac_distinct_right": torch.tensor((1 + 2 / 3) / 2, dtype=torch.float64),
        }
        logged = statistics.as_dict()
        assert logged.keys() == {f"maxent/{name}" for name in expected}
        for name, value in expected.items():
            assert_close(logged[f"maxent/{name}"], value, rtol=1e-10, atol=1e-10)
        assert statistics.num_groups == 3

    def test_what_cannot_be_known_is_absent(self):
        objective, target = build(anchor="none")
        known = {"maxent/ess", "maxent/weight_entropy", "maxent/max_weight", "maxent/frac_uninformative_groups"}
        without_keys = objective.target(UTILITIES, mask=MASK, lengths=LENGTHS)
        assert objective.statistics(without_keys).as_dict().keys() == known
        always = known | {"maxent/frac_distinct_right"}
        assert objective.statistics(target).as_dict().keys() == always
        objective, target = build(tau=INF)
        names = objective.statistics(target, policy_logps=OLD).as_dict().keys()
        assert names == always | {"maxent/kl_target_anchor", "maxent/forward_kl"}
        objective, target = build(anchor="none", projection="surrogate", max_length=8)
        assert objective.statistics(target, policy_logps=OLD).as_dict().keys() == always | {"maxent/forward_kl"}

    def test_empty_groups_are_not_averaged(self):
        objective = MaxEntObjective(MaxEntConfig())
        mask = MASK.clone()
        mask[1:] = False
        one = objective.target(UTILITIES, mask=mask, lengths=LENGTHS)
        alone = objective.statistics(one, policy_logps=OLD)
        first = objective.target(UTILITIES[0], mask=mask[0], lengths=LENGTHS[0])
        expected = objective.statistics(first, policy_logps=OLD[0])
        assert alone.num_groups == 1
        for name, value in expected.as_dict().items():
            assert_close(alone.as_dict()[name], value)
        nothing = objective.target(UTILITIES, mask=torch.zeros_like(MASK), lengths=LENGTHS)
        assert all(value == 0 for value in objective.statistics(nothing, policy_logps=OLD).as_dict().values())

    def test_infinite_temperatures_by_size_are_left_out_of_the_potential(self):
        unreachable = MaxEntObjective(MaxEntConfig(target_ess=100.0))
        target = unreachable.target(UTILITIES, mask=MASK, lengths=LENGTHS)
        logged = unreachable.statistics(target, policy_logps=OLD)
        knobs = {"tau": 0.2, "mask": MASK[1:]}
        log_policy = OLD.masked_fill(~MASK, -INF).log_softmax(-1)[1:]
        assert_close(logged.improvement_gap, mg.improvement_gap(log_policy, target.log_q[1:], **knobs).mean())
