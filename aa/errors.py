"""The one exception that is meant for the user's eyes."""


class InputError(ValueError):
    """Input that cannot be used: one sentence that says what was wrong, what is accepted and what to do."""
