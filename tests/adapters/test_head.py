"""`gather_head`: the plain head, PEFT's wrappers, and DDP, ZeRO-3 and FSDP2 against one process."""

import copy

import pytest
import torch
from torch import Tensor, nn

from maxent_grpo.adapters._head import gather_head
from maxent_grpo.kernels import linear_token_logps, linear_weighted_nll
from support.precision import Bounded, evaluate
from support.ranks import RANKS, on_ranks, spare_deepspeed_compiling

ROWS, WIDTH, VOCABULARY = 6, 8, 20


class Model(nn.Module):
    """A body and an LM head whose module is never called: the loss takes its weight."""

    def __init__(self, *, two_passes: bool = False) -> None:
        super().__init__()
        self.two_passes = two_passes
        torch.manual_seed(0)
        self.body = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, inputs: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        hidden = self.body(inputs).tanh()
        with gather_head(self.head, hidden.dtype, until_backward=self.two_passes) as (weight, bias):
            if self.two_passes:
                return -(weights * linear_token_logps(hidden, weight, ids, bias=bias)).sum()
            return linear_weighted_nll(hidden, weight, ids, weights, bias=bias).loss


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(ROWS, WIDTH), torch.randint(0, VOCABULARY, (ROWS,)), torch.randn(ROWS)


def evaluate_whole_batch() -> dict[str, Bounded]:
    """Each parameter's gradient, and how far one in float32 may be from it."""
    model, (inputs, ids, weights) = Model().double(), batch()
    parameters = dict(model.named_parameters())

    def differentiate() -> list[Tensor]:
        hidden = model.body(inputs.double()).tanh()
        logps = model.head(hidden).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        return list(torch.autograd.grad(-(weights.double() * logps).sum(), list(parameters.values())))

    return dict(zip(parameters, evaluate(differentiate), strict=True))


def part(rank: int) -> tuple[Tensor, ...]:
    """One rank's rows: losses times the number of ranks average to the whole batch's."""
    rows = slice(rank * ROWS // RANKS, (rank + 1) * ROWS // RANKS)
    inputs, ids, weights = batch()
    return inputs[rows], ids[rows], weights[rows] * RANKS


def half_precision_gradients() -> dict[str, Tensor]:
    """The mean over the ranks, in float32, of gradients that one process computes in bfloat16, its inputs too."""
    gradients: dict[str, Tensor] = {}
    for rank in range(RANKS):
        model, (inputs, ids, weights) = Model().bfloat16(), part(rank)
        model(inputs.bfloat16(), ids, weights.bfloat16()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradients[name] = gradients.get(name, 0) + parameter.grad.float() / RANKS
    return gradients


def ddp(rank: int) -> None:
    model = Model()
    parallel = nn.parallel.DistributedDataParallel(model)
    parallel(*part(rank)).backward()
    for name, exact in evaluate_whole_batch().items():
        exact.assert_near(model.get_parameter(name).grad)


def fsdp2(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", (RANKS,))
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def differentiate(policy: MixedPrecisionPolicy, *, shard_head: bool) -> dict[str, Tensor]:
        model = Model()
        for module in (model.body, model.head, model) if shard_head else (model.body, model):
            fully_shard(module, mesh=mesh, mp_policy=policy)
        model(*part(rank)).backward()
        return {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}

    for shard_head in (True, False):
        found = differentiate(MixedPrecisionPolicy(), shard_head=shard_head)
        for name, exact in evaluate_whole_batch().items():
            exact.assert_near(found[name])
        found = differentiate(mixed, shard_head=shard_head)
        for name, expected in half_precision_gradients().items():
            assert torch.equal(found[name], expected)  # the same operations in bfloat16, the same sum of two


def zero3(rank: int) -> None:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    spare_deepspeed_compiling()
    configuration = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    for two_passes in (False, True):
        model = Model(two_passes=two_passes)
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), config=configuration
        )
        loss = engine(*part(rank))
        assert model.head.weight.numel() == 0  # given back before the backward
        engine.backward(loss)
        for name, exact in evaluate_whole_batch().items():
            exact.assert_near(safe_get_full_grad(model.get_parameter(name)))


def data_parallel(rank: int) -> None:
    ddp(rank)
    fsdp2(rank)


@pytest.mark.slow
def test_under_ddp_and_fsdp2_the_ranks_gradients_average_to_the_whole_batchs() -> None:
    on_ranks(data_parallel)


@pytest.mark.slow
def test_zero3_gathers_the_head_for_the_forward_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    on_ranks(zero3)


def test_a_plain_head_gives_its_own_parameters() -> None:
    head = nn.Linear(WIDTH, VOCABULARY)
    with gather_head(head) as (weight, bias):
        assert weight is head.weight
        assert bias is head.bias


def test_a_head_with_a_lora_adapter_is_refused_until_it_is_merged() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(Model(), peft.LoraConfig(target_modules=["head"], init_lora_weights=False))
    head = model.base_model.model.head
    with pytest.raises(ValueError, match=r"without an adapter, or with a merged one, got .*adapters=\['default'\]"):
        gather_head(head).__enter__()
    precise = copy.deepcopy(head).double()
    (exact,) = evaluate(lambda: [precise(torch.eye(WIDTH, dtype=torch.float64)).detach()])
    head.merge()
    with gather_head(head) as (weight, bias):
        exact.assert_near(nn.functional.linear(torch.eye(WIDTH), weight, bias))


def test_where_adapters_are_disabled_the_head_is_the_model_without_them() -> None:
    peft = pytest.importorskip("peft")
    trained = peft.get_peft_model(Model(), peft.LoraConfig(target_modules=["body"], modules_to_save=["head"]))
    head = trained.base_model.model.head
    with trained.disable_adapter(), gather_head(head) as (weight, _):
        assert weight is head.original_module.weight
    adapted = peft.get_peft_model(Model(), peft.LoraConfig(target_modules=["head"], init_lora_weights=False))
    head = adapted.base_model.model.head
    with adapted.disable_adapter(), gather_head(head) as (weight, _):
        assert weight is head.base_layer.weight
    head.merge()
    with (
        adapted.disable_adapter(),
        pytest.raises(ValueError, match="Expected an adapter that is not merged where it is disabled"),
    ):
        gather_head(head).__enter__()


def test_a_trained_copy_of_the_head_is_the_one_used() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(Model(), peft.LoraConfig(target_modules=["body"], modules_to_save=["head"]))
    head = model.base_model.model.head
    with gather_head(head) as (weight, _):
        assert weight is head.modules_to_save["default"].weight
        assert weight.requires_grad


@pytest.mark.parametrize("head", [nn.ReLU(), nn.Sequential(nn.Linear(2, 3))])
def test_what_is_no_linear_layer_is_refused_by_name(head: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"Expected a linear LM head .* got lm_head='{type(head).__name__}'"):
        gather_head(head).__enter__()
