"""What ends a command: what a user can mend, and what needs no mending."""

USER_ERROR_CODE = 2  # exit code


class UserError(ValueError):
  """Bad input: one line with the key or file, the value and the way out.

  Commands print the message alone and exit with `USER_ERROR_CODE` (`cli.run`).
  """


class Preempted(Exception):  # noqa: N818 - not an error
  """A stop was asked for; the message says what is saved."""
