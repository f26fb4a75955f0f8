"""Every function of target, loss and potential compiles in one graph and never waits for the device."""

import inspect
import itertools

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import maxent_grpo.duplicates
import maxent_grpo.group_weights
import maxent_grpo.loss
import maxent_grpo.potential
import maxent_grpo.target
import maxent_grpo.transforms
from support.core_calls import CALLS, OF_LOSS, OF_TARGET

SYNCS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique2", "_unique2"}


class NoHostSync(TorchDispatchMode):
    """Refuses every operation that copies a value from the device to the host, or whose result's shape is a value."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in SYNCS or by_mask:
            raise AssertionError(f"{operation} waits for the device")
        return operation(*args, **(kwargs or {}))


def test_no_public_function_is_left_out():
    names = ("target", "duplicates", "transforms", "group_weights", "loss", "potential")
    modules = [getattr(maxent_grpo, name) for name in names]
    public = {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    of_names = {"find_transform", "list_inputs", "transform_utilities", "is_rate"}
    assert public - of_names == {name.split()[0] for name in CALLS}


class TestHostSync:
    @pytest.mark.parametrize("name", CALLS)
    def test_none_forward_or_backward(self, name):
        call = CALLS[name]
        inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in call.inputs]
        with NoHostSync():
            result = call.function(*inputs)
            if name in OF_LOSS:
                result.backward()

    @pytest.mark.parametrize("name", CALLS)
    def test_shapes_follow_without_any_values(self, name):
        """On the meta device there is nothing to read."""
        call = CALLS[name]
        result = call.function(*(x.to("meta") for x in call.inputs))
        expected = call.function(*call.inputs)
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype)

    @pytest.mark.parametrize(
        "sync", [lambda x: x.item(), lambda x: bool(x > 0), lambda x: (x > 0).nonzero(), lambda x: x[x > 0]]
    )
    def test_the_guard_guards(self, sync):
        with NoHostSync(), pytest.raises(AssertionError, match="waits for the device"):
            sync(torch.ones(1))


class TestVmap:
    @pytest.mark.parametrize("name", OF_TARGET)
    def test_over_groups_is_the_batch(self, name):
        call = CALLS[name]
        assert_close(torch.func.vmap(call.function)(*call.inputs), call.function(*call.inputs))

    @pytest.mark.parametrize("name", OF_TARGET)
    def test_over_some_inputs_only(self, name):
        call = CALLS[name]
        for dims in itertools.islice(
            itertools.product((0, None), repeat=len(call.inputs)), 2 ** len(call.inputs) - 1
        ):
            inputs = [x if dim == 0 else x[0] for x, dim in zip(call.inputs, dims, strict=True)]
            mapped = torch.func.vmap(call.function, in_dims=dims)(*inputs)
            looped = [
                call.function(*(x[g] if dim == 0 else x for x, dim in zip(inputs, dims, strict=True)))
                for g in range(2)
            ]
            assert_close(mapped, torch.stack(looped))


class TestCompile:
    @pytest.mark.parametrize("name", CALLS)
    def test_is_one_graph(self, name):
        call = CALLS[name]
        torch.compiler.reset()
        compiled = torch.compile(call.function, backend="eager", fullgraph=True)
        assert_close(compiled(*call.inputs), call.function(*call.inputs), rtol=0.0, atol=0.0, equal_nan=True)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["tempered_target", "improvement_gap", "maxent_weighted_nll"])
    def test_the_real_compiler_agrees_with_gradients(self, name):
        call = CALLS[name]
        torch.compiler.reset()

        def gradients(function):
            inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in call.inputs]
            result = function(*inputs)
            result.sum().backward()
            return result.detach(), [x.grad for x in inputs if x.is_floating_point()]

        value, slopes = gradients(torch.compile(call.function, fullgraph=True))
        expected, expected_slopes = gradients(call.function)
        assert_close(value, expected)
        for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
            assert (slope is None) == (expected_slope is None)
            if slope is not None:
                assert_close(slope, expected_slope)
