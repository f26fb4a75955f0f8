"""Whether secrets of the environment appear anywhere: logs, runs, arguments, what Slurm shows, a dry run."""

import subprocess
import threading
import time
from pathlib import Path

from jobs import ROOT, TINY, Site

CANARIES = {"HF_TOKEN": "hf_CanaryThatSingsWhereItIsSeen", "WANDB_API_KEY": "CanaryOfWandbThatSings0123456789"}


class ArgumentWatch(threading.Thread):
    """Looks at all command lines and all jobs until it is told to stop."""

    def __init__(self, site: Site) -> None:
        super().__init__(daemon=True)
        self.site, self.seen, self.looks = site, [], 0
        self._end = threading.Event()

    def run(self) -> None:
        """Look every half second."""
        while not self._end.wait(0.5):
            self.looks += 1
            for place, text in self._list_texts():
                if any(canary in text for canary in CANARIES.values()):
                    self.seen.append(place)

    def stop(self) -> list[str]:
        """Stop; return where a secret was seen."""
        self._end.set()
        self.join()
        return sorted(set(self.seen))

    def _list_texts(self) -> list[tuple[str, str]]:
        texts = [("scontrol show job", self.site.cluster.call("scontrol", "show", "job", check=False))]
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                texts.append((f"arguments: {file.read_bytes()[:80]!r}", file.read_bytes().decode(errors="replace")))
            except OSError:
                continue
        return texts


def search_files(since: float) -> list[str]:
    """Return the files under logs/, runs/rehearsal and var/ that hold a secret, of those written since."""
    seen = []
    for folder in ("logs", "runs/rehearsal", "var"):
        for file in ROOT.joinpath(folder).rglob("*"):
            if file.is_file() and file.stat().st_mtime >= since:
                content = file.read_bytes()
                if any(canary.encode() in content for canary in CANARIES.values()):
                    seen.append(str(file.relative_to(ROOT)))
    return seen


def dry_run(site: Site) -> str:
    """Return what a dry run prints; it names the secrets that are set and shows none."""
    result = subprocess.run(
        ["bash", "examples/slurm_train.sh", *TINY, "--dry-run"],
        env=site.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    text = result.stdout + result.stderr
    assert all(f"{name}=<set, not shown>" in text for name in CANARIES), text
    assert not any(canary in text for canary in CANARIES.values())
    return text


def check_secrecy(watch: ArgumentWatch, since: float) -> dict[str, object]:
    """Stop the watch and search what was written.

    Raises:
        AssertionError: naming where a secret was seen.
    """
    seen = watch.stop() + search_files(since)
    assert not seen, f"a secret was seen: {seen}"
    assert watch.looks > 10
    return {"looks_at_arguments_and_jobs": watch.looks, "seen": 0, "at": time.strftime("%F")}
