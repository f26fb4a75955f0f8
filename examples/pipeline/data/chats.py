"""Chats as data holds them: which are read, and how the chat template gets them."""

from typing import Any

Message = dict[str, Any]


def describe_bad_prompt(prompt: Any, *, chat: bool) -> str | None:
    """Return what is wrong with a prompt, None if nothing is.

    >>> describe_bad_prompt(None, chat=True), describe_bad_prompt("1+1", chat=False)
    ('no text and no chat', None)
    >>> describe_bad_prompt([{"role": "user", "content": [{"type": "image"}]}], chat=True)
    "a message with a part of type 'image'"
    """
    if isinstance(prompt, str):
        return None if prompt.strip() else "an empty text"
    if not isinstance(prompt, list) or not prompt:
        return "no text and no chat"
    if not chat:
        return "a chat"
    return next((problem for message in prompt if (problem := _describe_bad_message(message))), None)


def _describe_bad_message(message: Any) -> str | None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return "a message without a role"
    content = message.get("content")
    if content is None:
        return None if message.get("tool_calls") else "a message without content"
    if isinstance(content, str):
        return None
    if not isinstance(content, list):
        return f"a message whose content is a {type(content).__name__}"
    kinds = [part.get("type") if isinstance(part, dict) else type(part).__name__ for part in content]
    others = [kind for kind in kinds if kind != "text"]
    return f"a message with a part of type {others[0]!r}" if others else None


def read_content(content: Any) -> str:
    """Return the text of a message's content: itself, or its parts of text one after the other.

    >>> read_content([{"type": "text", "text": "1+"}, {"type": "text", "text": "1"}]), read_content(None)
    ('1+1', '')
    """
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content or "")


def read_message(message: Message) -> Message:
    """Return a message as a template takes it: parts of text joined, calls and names of tools kept, gaps left out.

    A table has a column for every field that any message has; None stands where this one has it not.
    """
    fields = {name: _drop_gaps(value) for name, value in message.items() if value is not None}
    return fields | {"content": read_content(message.get("content"))}


def _drop_gaps(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _drop_gaps(each) for name, each in value.items() if each is not None}
    return [_drop_gaps(each) for each in value] if isinstance(value, list) else value
