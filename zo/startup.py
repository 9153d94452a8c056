"""What a command does before its modules are imported; this one imports next to nothing."""

import signal


def end_on_interrupt() -> None:
    """Until `zo.cli` takes it over, Ctrl-C ends the program without a word, unless the caller ignores it or has it handled."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
