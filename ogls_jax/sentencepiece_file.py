"""SentencePiece .model files, as far as other tools can do what they do."""

import pathlib

from sentencepiece import sentencepiece_model_pb2

from ogls_jax.errors import UserError


def gguf_fields(file: pathlib.Path) -> dict[str, object]:
  """The fields of a GGUF header that say the same as a .model file.

  Raises:
    UserError: nothing else does: its text rules or its search have no form
      outside SentencePiece.
  """
  proto = sentencepiece_model_pb2.ModelProto()
  proto.ParseFromString(file.read_bytes())
  spec, rules = proto.trainer_spec, proto.normalizer_spec
  # A character model is a BPE that merges nothing.
  is_plain = spec.model_type in (spec.BPE, spec.CHAR)
  own = [piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]
  if (
    not is_plain
    or rules.precompiled_charsmap
    or rules.remove_extra_whitespaces
    or not rules.escape_whitespaces
    or spec.treat_whitespace_as_suffix
    or (own and rules.add_dummy_prefix)
  ):
    kind = spec.ModelType.Name(spec.model_type).lower()
    raise UserError(
      f'model.tokenizer_path = {file}: a SentencePiece model of kind {kind}'
      f' with text rules {rules.name} cannot be saved for other tools; bpe and'
      ' char can, with identity, all spaces kept, and either no dummy prefix or'
      ' no user-defined symbols; give tokenizer.json instead'
    )
  fields = {
    'model': 'llama',
    'tokens': [piece.piece for piece in proto.pieces],
    'token_type': [piece.type for piece in proto.pieces],
    'scores': [piece.score for piece in proto.pieces],
    'add_space_prefix': rules.add_dummy_prefix,
    'unknown_token_id': spec.unk_id,
    'eos_token_id': spec.eos_id,
  }
  if spec.bos_id >= 0:
    fields['bos_token_id'] = spec.bos_id
  if spec.pad_id >= 0:
    fields['padding_token_id'] = spec.pad_id
  return {f'tokenizer.ggml.{name}': value for name, value in fields.items()}
