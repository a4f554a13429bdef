"""What each token of a response adds to its text, for people to look at."""

import functools
from collections.abc import Callable

from ogls_jax.tokenizer import Tokenizer

# A decoder's mark for bytes that are no character, or none yet.
_BROKEN = '\ufffd'
# A character has at most 4 bytes, so more tokens than these end none.
_MOST_HELD = 16


def split_text(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
  """A text for each id; joined they are `decode(ids)` or a start of it.

  A character whose bytes are spread over tokens comes with the last of them,
  and the others have '', as control tokens do, which `decode` drops. What is
  missing at the end are bytes of a character that goes on after `ids`.
  Linear in their number: decoded are the tokens since the last character and
  those of the text before it, as what a token adds may depend on its neighbour.
  """
  texts, start, done = [''] * len(ids), 0, 0
  for end in range(1, len(ids) + 1):
    known = tokenizer.decode(ids[start:done])
    text = tokenizer.decode(ids[start:end])
    is_held = text.endswith(_BROKEN) and end - done < _MOST_HELD
    if is_held or len(text) <= len(known):
      continue
    texts[end - 1] = text[len(known) :]
    start, done = done, end
  return texts


def text_after(whole: str, texts: list[str]) -> str:
  """What of a response's text comes after `split_text` of its first tokens."""
  start = ''.join(texts)
  same = 0
  # Bytes that are no character may be as many marks in one as in the other.
  while same < min(len(start), len(whole)) and start[same] == whole[same]:
    same += 1
  return whole[same:]


def token_namer(tokenizer: Tokenizer) -> Callable[[int], str]:
  """id -> its text amid others or, where it has none, its vocabulary's name."""
  # After another token, as decoders drop a space at the start.
  before = tokenizer.encode('a')[-1:]
  start = tokenizer.decode(before)

  @functools.cache
  def name(index: int) -> str:
    text = tokenizer.decode([*before, index])[len(start) :]
    if text and _BROKEN not in text:
      return text
    # Embeddings may have more rows than there are tokens.
    is_known = index < tokenizer.vocab_size
    return (is_known and tokenizer.token_of(index)) or f'<{index}>'

  return name
