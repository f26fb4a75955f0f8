"""The shape of a prompt."""

TokensPrompt = dict
