"""Every method of the table has the coefficients of its published formula, to the last digits.

Nothing of the library appears on the side of the formulas: each is a function of one group in plain arithmetic.
"""

import math
import statistics
from dataclasses import dataclass

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from maxent_grpo import MaxEntConfig, MaxEntObjective, methods
from maxent_grpo.methods import METHODS

pytestmark = pytest.mark.numerical
LIMIT = 8


@dataclass(frozen=True)
class Group:
    """K candidates: rewards, how many give each one's answer, lengths, summed log-probabilities."""

    r: list[float]
    n: list[int]
    lengths: list[int]
    old: list[float]
    ref: list[float]

    @property
    def size(self):
        return len(self.r)

    @property
    def wins(self):
        return int(sum(self.r))

    @property
    def rate(self):
        return self.wins / self.size


@st.composite
def groups(draw):
    """Binary rewards; an answer is right or wrong; log-probabilities under the cap of eq. (4c)."""
    K = draw(st.integers(5, 8))

    def draw_list(elements):
        return draw(st.lists(elements, min_size=K, max_size=K))

    r = draw_list(st.sampled_from([0.0, 1.0]))
    answers = [f"{answer} {reward}" for answer, reward in zip(draw_list(st.integers(0, 2)), r, strict=True)]
    logps = st.floats(-9.5, -0.5, allow_subnormal=False)
    return Group(
        r, [answers.count(a) for a in answers], draw_list(st.integers(1, LIMIT)), draw_list(logps), draw_list(logps)
    )


def softmax(scores):
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def standardize(values):
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    return [(v - mean) / deviation if max(values) > min(values) else 0.0 for v in values]


def average_gains(group, utilities):
    """A policy gradient's coefficients: advantages over K."""
    return [u / group.size for u in utilities]


def maxrl(g):
    return [(r / g.rate - 1) / g.size if g.wins else 0.0 for r in g.r]


def scale(g, weight):
    """MaxRL's direction, which is 0 where all are equal, times a group weight."""
    return [weight * c for c in maxrl(g)] if 0 < g.wins < g.size else [0.0] * g.size


def pass_at_k_training(g, k=4):
    failure = math.comb(g.size - g.wins, k) / math.comb(g.size, k)
    deviation = math.sqrt(failure * (1 - failure))
    if deviation == 0:
        return [0.0] * g.size
    wrong = failure - math.comb(max(g.size - g.wins - 1, 0), k - 1) / math.comb(g.size - 1, k - 1)
    return [(failure if r else wrong) / deviation / g.size for r in g.r]


def gapo(g):
    answers = sum(1 / n for n, r in zip(g.n, g.r, strict=True) if r)
    rewards = [1 - (n / g.wins - 1 / answers) if r else -1.0 for n, r in zip(g.n, g.r, strict=True)]
    return average_gains(g, standardize(rewards))


def darling(g):
    unlike = [1.0 if g.wins < 2 else max(0.1, (g.wins - n) / (g.wins - 1)) for n in g.n]
    return average_gains(g, standardize([r * u for r, u in zip(g.r, unlike, strict=True)]))


def unlikeliness(g):
    ranks = [1 + sum(o < p for o in g.old) + (g.old.count(p) - 1) / 2 for p in g.old]
    return average_gains(g, standardize([r * (1 - 0.25 * rank / g.size) for r, rank in zip(g.r, ranks, strict=True)]))


def ucpo(g):
    z = standardize(g.r)
    odds = [math.exp(-p) if r else 0.0 for r, p in zip(g.r, g.old, strict=True)]
    gain = sum(v for v, r in zip(z, g.r, strict=True) if r)
    return average_gains(g, [gain * o / sum(odds) if r else v for o, r, v in zip(odds, g.r, z, strict=True)])


def tilted(g, gains):
    target = softmax([p + gain for p, gain in zip(g.old, gains, strict=True)])
    return [t - p for t, p in zip(target, softmax(g.old), strict=True)]


def regress(g, targets, scores):
    """Minus the gradient of Σ_i (score_i − target_i − their mean difference)²/(2K) in the scores."""
    residuals = [t - s for t, s in zip(targets, scores, strict=True)]
    return [(residual - statistics.fmean(residuals)) / g.size for residual in residuals]


def flow_rl(g, scale=15):
    per_token = [p / length for p, length in zip(g.old, g.lengths, strict=True)]
    refs = [p / length for p, length in zip(g.ref, g.lengths, strict=True)]
    return regress(g, [scale * z + ref for z, ref in zip(standardize(g.r), refs, strict=True)], per_token)


def x_dr_grpo(g, tau=0.05):
    gains = [r - g.rate for r in g.r]
    weights = softmax([a * length / LIMIT / tau for a, length in zip(gains, g.lengths, strict=True)])
    return [w * a for w, a in zip(weights, gains, strict=True)]


def tempered_dpg(g, power=0.5):
    weights = [math.exp(power * (a - b)) if r else 0.0 for a, b, r in zip(g.ref, g.old, g.r, strict=True)]
    return [w / sum(weights) if g.wins else 0.0 for w in weights]


def ips(g):
    return average_gains(g, standardize([r / (n / g.size) for r, n in zip(g.r, g.n, strict=True)]))


def dr_grpo(g):
    return average_gains(g, [r - g.rate for r in g.r])


FORMULAS = {
    "RAFT": lambda g: [r / g.wins if g.wins else 0.0 for r in g.r],
    "RWR": lambda g: softmax(g.r),
    "KL-regularized optimum": lambda g: softmax([
        ref / length + r / 0.1 for ref, length, r in zip(g.ref, g.lengths, g.r, strict=True)
    ]),
    "MaxRL": maxrl,
    "Dr.GRPO": dr_grpo,
    "GRPO": lambda g: average_gains(g, standardize(g.r)),
    "F-GRPO": lambda g: average_gains(g, [(1 - g.rate) * a for a in standardize(g.r)]),  # γ = 1
    "PKPO": lambda g: scale(
        g, g.rate * 4 * math.comb(max(g.size - 1 - g.wins, 0), 3) / math.comb(g.size - 1, 3)
    ),
    "Pass@k training": pass_at_k_training,
    "IPS-GRPO": ips,
    "IPS-GRPO, centered": lambda g: [
        r / n - sum(r / n for r, n in zip(g.r, g.n, strict=True)) / g.size for r, n in zip(g.r, g.n, strict=True)
    ],
    "DRA-GRPO": ips,  # r_i/Σ_j S_ij of exact matches, z-scored: where K goes does not matter
    "UCPO": ucpo,
    "GAPO": gapo,
    "DARLING": darling,
    "unlikeliness": unlikeliness,
    "TPO": lambda g: tilted(g, standardize(g.r)),
    "LPO-forward": lambda g: tilted(g, [r / 0.5 for r in g.r]),
    "FlowRL": flow_rl,
    "TBA": lambda g: regress(g, [r / 0.1 + ref for r, ref in zip(g.r, g.ref, strict=True)], g.old),
    "GVPO": lambda g: regress(g, [r / 0.1 + old for r, old in zip(g.r, g.old, strict=True)], g.old),
    "xDr.GRPO": x_dr_grpo,
    "Re:Max": maxrl,
    "Re:Dr": dr_grpo,
    "tempered DPG": tempered_dpg,
    "W-REINFORCE": lambda g: average_gains(g, [0.1 if r else -1.0 for r in g.r]),
}  # fmt: skip
SCORED = {"W-REINFORCE": lambda r: 0.1 if r else -1.0}


def compute(config, group, score=lambda r: r, **inputs):
    """The library's coefficients of one group."""
    objective = MaxEntObjective(config)
    column = lambda values: torch.tensor([values], dtype=torch.float64)  # noqa: E731
    old = column(group.old)
    target = objective.target(
        column([score(r) for r in group.r]),
        mask=torch.ones(1, group.size, dtype=torch.bool),
        lengths=torch.tensor([group.lengths]),
        ref_logps=column(group.ref),
        old_logps=old,
        counts=torch.tensor([group.n]),
        **inputs,
    )
    return objective.coefficients(target, old_logps=old)[0]


def with_limit(config):
    return MaxEntConfig(**{**vars(config), "max_length": LIMIT})


@pytest.mark.parametrize("name", METHODS)
@given(group=groups())
def test_has_the_coefficients_of_its_formula(name, group):
    found = compute(with_limit(METHODS[name].config), group, SCORED.get(name, lambda r: r))
    assert_close(found, torch.tensor(FORMULAS[name](group), dtype=torch.float64), rtol=1e-12, atol=1e-13)


def test_each_row_has_a_formula_and_its_settings_are_not_the_defaults():
    assert FORMULAS.keys() == METHODS.keys()
    defaults = vars(MaxEntConfig())
    for method in METHODS.values():
        assert all(defaults[field] != value for field, value in method.settings.items())


@given(groups())
def test_kappa_of_one_is_ips_up_to_a_positive_factor_per_group(group):
    config = MaxEntConfig(tau=0.0, center=True, dedup=1.0, skip="all_min")
    answers = sum(r / n for r, n in zip(group.r, group.n, strict=True))
    expected = torch.tensor(FORMULAS["IPS-GRPO, centered"](group), dtype=torch.float64)
    assert_close(compute(config, group) * answers, expected, rtol=1e-12, atol=1e-13)


@given(groups())
def test_powers_of_the_success_rate_are_grpo_and_dr_grpo(group):
    """a = 1, and a = ½ with b = −½, of MaxRL's direction."""
    centered = {"tau": 0.0, "center": True}
    for name, powers in {
        "Dr.GRPO": {"success_power": 1.0},
        "GRPO": {"success_power": 0.5, "failure_power": -0.5},
    }.items():
        expected = torch.tensor(FORMULAS[name](group), dtype=torch.float64)
        assert_close(compute(MaxEntConfig(**centered, **powers), group), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["Re:Max", "Re:Dr"])
def test_the_replays_rehearse_with_the_published_weight(name):
    """λ(K−1)/K² times the mean per own token, beside fresh rows that are divided by the limit."""
    config = with_limit(METHODS[name].config)
    shares, lengths = torch.tensor([1 / 2, 1 / 2], dtype=torch.float64), torch.tensor([2, 5])
    c = MaxEntObjective(config).rehearsal_coefficients(shares, lengths, group_size=16, num_groups=3)
    expected = 0.1 * 15 / 16**2 / 2 / lengths.double()
    assert_close(c / 3 / LIMIT, expected, rtol=1e-14, atol=0.0)


class TestCommand:
    def test_prints_the_table(self, capsys):
        assert methods.main([]) == 0
        printed = capsys.readouterr().out
        assert all(name in printed and method.reference in printed for name, method in METHODS.items())

    @pytest.mark.parametrize("name", METHODS)
    def test_prints_a_recipe_that_is_read_as_the_method(self, name, capsys):
        assert methods.main([name]) == 0
        recipe = yaml.safe_load(capsys.readouterr().out)
        assert MaxEntConfig.from_recipe(recipe, {}) == METHODS[name].config

    def test_names_the_methods_that_there_are(self, capsys):
        assert methods.main(["PPO"]) == 2
        assert "Expected one of ['RAFT', " in capsys.readouterr().err
