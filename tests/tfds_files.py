"""Small TensorFlow Datasets in array_record, as `tfds build` leaves them."""

import pytest


def prepare_tfds(data_dir, name, splits, columns, config=None):
  """Writes {split: rows}; `columns` is a function of `tfds.features`."""
  tfds = pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('array_record')
  features = tfds.features.FeaturesDict(columns(tfds.features))

  class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
    # Nothing to download. Without this TFDS looks for a checksum file, which
    # needs a package it does not install.
    url_infos = {}

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
      return {
        split: self._generate_examples(rows) for split, rows in splits.items()
      }

    def _generate_examples(self, rows):
      yield from enumerate(rows)

  Toy.name = name
  Toy(
    data_dir=data_dir, config=config, file_format='array_record'
  ).download_and_prepare()
