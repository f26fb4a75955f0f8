"""The names of OpenRLHF that nobody promises are there, with the parameters that are passed."""

import dataclasses
import functools
import inspect
import pkgutil

import pytest
from openrlhf.trainer.ppo_utils.experience import Experience

from maxent_grpo.adapters.openrlhf.options import REFUSED
from maxent_grpo.adapters.openrlhf.private_names import ATTRIBUTES, EXPERIENCE_FIELDS, METHODS, REBOUND
from support.openrlhf_tiny import read_command


@pytest.mark.parametrize("name", REBOUND)
def test_a_name_that_is_rebound_is_there(name: str) -> None:
    assert callable(pkgutil.resolve_name(name)) or hasattr(pkgutil.resolve_name(name), "remote")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_parameters_that_it_is_given(name: str) -> None:
    parameters = list(inspect.signature(pkgutil.resolve_name(name)).parameters)
    assert tuple(parameters[1 : 1 + len(METHODS[name][0])]) == METHODS[name][0]


def test_an_experience_has_the_fields_that_are_read() -> None:
    assert EXPERIENCE_FIELDS.keys() <= {field.name for field in dataclasses.fields(Experience)}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_class_sets_the_attributes_that_are_used(name: str) -> None:
    source = inspect.getsource(pkgutil.resolve_name(name))
    assert [attribute for attribute in ATTRIBUTES[name] if f"self.{attribute} = " not in source] == []


def test_a_refused_option_is_one_of_openrlhfs_by_that_name() -> None:
    args = read_command("--rollout.n_samples_per_prompt", 2)
    for name in REFUSED:
        functools.reduce(getattr, name.split("."), args)
