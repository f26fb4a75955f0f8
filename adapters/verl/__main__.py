"""The check of a command line: whether verl will find the trainers, and what becomes of its options."""

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.import_utils import load_extern_object

from maxent_grpo._checks import expect
from maxent_grpo._secrets import DiscreetParser, hide_secrets
from maxent_grpo.adapters.verl.options import METHOD, prepare_config

logger = logging.getLogger(__name__)


def load_config(overrides: Sequence[str], directory: str | None, name: str) -> Any:
    """Return what `verl.trainer.main_ppo` would make of its command line."""
    if directory is None:
        source = initialize_config_module("verl.trainer.config", version_base=None)
    else:
        source = initialize_config_dir(os.path.abspath(directory), version_base=None)
    with source:
        return compose(name, list(overrides))


def expect_discoverable() -> None:
    """Check that processes of verl will find this module, without which they do not know the trainer."""
    names = [entry.name for entry in entry_points(group="verl.plugins") if entry.value == "maxent_grpo.adapters.verl"]
    expect(names == ["maxent"], "maxent_grpo to be installed with its entry point", **{"verl.plugins": names})
    allowed = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip()
    listed = [name.strip() for name in allowed.lower().split(",")]
    expect("auto" in listed or "maxent" in listed, "auto or maxent", VERL_USE_EXTERNAL_PLUGINS=allowed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check a command line of `verl.trainer.main_ppo`; what is wrong goes to the log, and 1 is returned."""
    parser = DiscreetParser("python -m maxent_grpo.adapters.verl", description=main.__doc__)
    parser.add_argument("--check", nargs="*", required=True, metavar="OVERRIDE", help="as verl.trainer.main_ppo's")
    parser.add_argument("--config-path", help="as verl.trainer.main_ppo's")
    parser.add_argument("--config-name", default="ppo_trainer", help="as verl.trainer.main_ppo's")
    options = parser.parse_args(arguments)
    try:
        expect_discoverable()
        config = load_config(options.check, options.config_path, options.config_name)
        prepare_config(config)
        if (key_func := OmegaConf.select(config, f"{METHOD}.key_func")) is not None:
            load_extern_object(key_func.path, key_func.name)
        validate_config(config, need_reference_policy(config), need_critic(config))
    except (ValueError, AssertionError, HydraException, OmegaConfBaseException, ImportError, OSError) as error:
        logger.error("%s", hide_secrets(str(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
