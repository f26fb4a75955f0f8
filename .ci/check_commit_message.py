"""Refuse a commit message that a log of one line per commit cannot show. Git passes the message's file."""

import sys
from pathlib import Path

MOST_CHARACTERS = 72


def find_faults(message: str) -> list[str]:
    """Say what is wrong with a message; lines that begin with # are git's own."""
    subject, *body = [line for line in message.strip().splitlines() if not line.startswith("#")] or [""]
    faults = []
    if not subject.strip():
        faults.append("Expected a subject, got none.")
    if len(subject) > MOST_CHARACTERS:
        faults.append(f"Expected a subject of at most {MOST_CHARACTERS} characters, got {len(subject)}.")
    if subject.endswith("."):
        faults.append("Expected a subject without a full stop at its end.")
    if body and body[0].strip():
        faults.append("Expected an empty line between the subject and the body.")
    return faults


if __name__ == "__main__":
    sys.exit("\n".join(find_faults(Path(sys.argv[1]).read_text())) or None)
