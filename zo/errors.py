"""Errors a person can act on, each with the exit code that docs/exit-codes.md explains."""


class UserError(Exception):
    """One clear line: what is wrong, where, and what to do. `exit_code` is documented in docs/exit-codes.md."""

    exit_code = 1


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or impossible."""

    exit_code = 3


class DataError(UserError):
    """The examples cannot be used: missing, empty, unreadable, or none of them valid."""

    exit_code = 4


class BundleError(UserError):
    """A bundle or model folder is incomplete, altered, or of a kind this version does not know."""

    exit_code = 5


class ConnectionFailed(UserError):
    """The coordinator cannot be reached, or the address to serve on is not to be had."""

    exit_code = 6


class RunRefused(UserError):
    """The coordinator and the device do not agree: another run, bundle, or version."""

    exit_code = 7


class StorageError(UserError):
    """The store or state folder cannot be read or written."""

    exit_code = 8


class PrivacySpent(UserError):
    """The device's own privacy budget allows no more reports."""

    exit_code = 9


class DoesNotFit(UserError):
    """What is to be done needs more memory than is allowed."""

    exit_code = 10
