"""One checkable question, the unit every task and data source deals in."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Question:
  """A question x, its checkable answer a and, where known, a solution s.

  `id` is unique within a data set and never depends on the row's neighbours.
  `choices` are the allowed answers of a multiple-choice task, else empty.
  `fields` holds the row's other columns, as JSON values.
  """

  id: str
  question: str
  answer: str
  solution: str | None = None
  choices: tuple[str, ...] = ()
  fields: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, hash=False
  )
