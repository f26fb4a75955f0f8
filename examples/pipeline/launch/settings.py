"""What a recipe, a launch file and the flags say of a run, checked as train.py will check it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maxent_grpo.pipeline.launch.errors import LaunchError
from maxent_grpo.pipeline.launch.options import Options, show_flag
from maxent_grpo.pipeline.launch.owned import find_server
from maxent_grpo.pipeline.launch.topology import Topology
from maxent_grpo.pipeline.recipes import find_recipe, parse_flags, read_recipe
from maxent_grpo.pipeline.run import Run, parse_run
from maxent_grpo.pipeline.starts import STARTS

RECIPES, LAUNCH_FILES = Path("examples/recipes"), Path("examples/accelerate")


@dataclass(frozen=True)
class LaunchFile:
    """A file of Accelerate.

    Attributes:
        path: where it is.
        kind: its `distributed_type`.
        cpu_ranks: processes of each machine that train on CPUs; 0 where it is for GPUs.
    """

    path: Path
    kind: str
    cpu_ranks: int


@dataclass(frozen=True)
class Settings:
    """What is trained, and where from.

    Attributes:
        recipe: the file.
        launch_file: Accelerate's.
        mode: server, colocate, off, or external where train.py asks a server that is already there.
        uses_vllm: what the recipe says of `use_vllm`.
    """

    recipe: Path
    launch_file: LaunchFile
    mode: str
    uses_vllm: bool


def read_settings(options: Options, root: Path) -> Settings:
    """Return what recipe and launch file say.

    Raises:
        LaunchError: naming the flag whose file is missing, and the files that there are.
    """
    folder = _expect_choice("--model", options.model, RECIPES, sorted(root.joinpath(RECIPES).glob("*/")))
    path, _ = find_recipe(root / folder / options.task / f"config_{options.config}.yaml", options.task)
    recipes = sorted(root.joinpath(folder).glob("*/config_*.yaml"))
    if path not in recipes:
        names = sorted({recipe.stem.removeprefix("config_") for recipe in recipes})
        raise LaunchError(
            f"Expected --config of {', '.join(names)} for {folder}, got {show_flag('config', options.config)}."
        )
    files = sorted(root.joinpath(LAUNCH_FILES).glob("*.yaml"))
    launch_file = _expect_choice("--accelerator", options.accelerator, LAUNCH_FILES, files)
    try:
        recipe = read_recipe(path)
    except ValueError as error:
        raise LaunchError(str(error)) from error
    flags = {name: values[-1] for name, values in parse_flags(options.args) if values}
    uses_vllm = _is_true(flags.get("use_vllm", recipe.get("use_vllm", False)))
    mode = options.vllm
    if mode == "auto":
        mode = str(flags.get("vllm_mode") or recipe.get("vllm_mode") or "server") if uses_vllm else "off"
    server = find_server(options.args)
    if server is not None and mode != "server":
        raise LaunchError(f"Expected {server} in --args with a server, got it where vLLM is {mode}.")
    mode = mode if server is None else "external"
    return Settings(path.relative_to(root), _read_launch_file(root, launch_file), mode, uses_vllm)


def check_run(options: Options, settings: Settings, topology: Topology, root: Path) -> Run:
    """Return the run as train.py will parse it on so many ranks.

    Raises:
        LaunchError: on whatever train.py would refuse.
    """
    arguments = [*list_trainer_flags(options, settings), *options.args]
    try:
        preflight = ["--preflight_only", "true", "--gpus", str(topology.ranks)]
        run = parse_run(["--config", str(root / settings.recipe), *arguments, *preflight])
    except ValueError as error:
        text = str(error).replace(f"{root}/", "")
        raise LaunchError(re.sub("^command line:", "--args:", text)) from error
    _expect_mode(options, settings, run)
    return run


def _expect_mode(options: Options, settings: Settings, run: Run) -> None:
    """Refuse flags of train.py that contradict `--vllm`: one of both would be without effect."""
    names = [name for name in ("use_vllm", "vllm_mode") if name in dict(parse_flags(options.args))]
    args = run.training
    wanted = "server" if settings.mode == "external" else settings.mode
    if (args.vllm_mode if args.use_vllm else "off") != wanted:
        got = " ".join(f"--{name} {str(getattr(args, name)).lower()}" for name in names)
        raise LaunchError(f"Expected --args to agree with --vllm {options.vllm}, got {got} in it.")
    if "vllm_group_port" in dict(parse_flags(options.args)) and options.vllm_group_port is not None:
        raise LaunchError(
            f"Expected one port, got --vllm-group-port {options.vllm_group_port} and --vllm_group_port "
            f"{args.vllm_group_port} in --args."
        )


def list_trainer_flags(options: Options, settings: Settings) -> list[str]:
    """Return the flags of train.py that say what the recipe leaves open, but for addresses."""
    flags = ["--task", options.task]
    if settings.mode == "off":
        return flags + (["--use_vllm", "false"] if settings.uses_vllm else [])
    mode = "server" if settings.mode == "external" else settings.mode
    return [*flags, *([] if settings.uses_vllm else ["--use_vllm", "true"]), "--vllm_mode", mode]


def find_start(run: Run) -> tuple[str, str] | None:
    """Return the name and the folder of a model that is made on the spot, if it is one."""
    name = str(run.model.model_name_or_path)
    root = Path(run.training.output_dir).parent
    return (name, str(root)) if name in STARTS else None


def _read_launch_file(root: Path, path: Path) -> LaunchFile:
    try:
        fields: Any = yaml.safe_load((root / path).read_text())
    except yaml.YAMLError as error:
        raise LaunchError(f"{path}: Expected YAML, got {getattr(error, 'problem', error)}.") from error
    if not isinstance(fields, dict) or "distributed_type" not in fields:
        raise LaunchError(f"{path}: Expected a launch file of Accelerate, got no distributed_type.")
    ranks = int(fields.get("num_processes", 1)) // int(fields.get("num_machines", 1))
    return LaunchFile(path, str(fields["distributed_type"]), ranks if fields.get("use_cpu") else 0)


def _expect_choice(flag: str, name: str, folder: Path, paths: list[Path]) -> Path:
    for path in paths:
        if name in (path.stem, path.name):
            return folder / path.name
    names = ", ".join(path.stem if path.suffix == ".yaml" else path.name for path in paths)
    raise LaunchError(f"Expected {flag} of {names}, got {show_flag(flag.removeprefix('--'), name)}.")


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes")
