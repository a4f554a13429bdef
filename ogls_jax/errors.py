"""The one error a user can cause and mend."""


class UserError(ValueError):
  """Bad input: one line with the key or file, the value and the way out.

  Commands print the message alone and exit with code 2 (`cli.run`).
  """
