"""The two ways a command ends badly; the command line turns them into one paragraph and an exit code."""


class BadInput(Exception):
    """What the user gave cannot be used: says what, where (file, line, record or key) and what to do. Exit code 2."""


class RunFailed(Exception):
    """The work itself went wrong (not the input): says what, and what was kept. Exit code 1."""


class Diverged(RunFailed):
    """Training left the numbers, or spiked again and again: the recipe's fault, not the machine's."""


class Interrupted(Exception):
    """Stopped on request after a clean checkpoint: says how to go on. Exit code 130."""
