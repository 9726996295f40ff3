"""Slices on disk: TFRecord shards of losslessly packed pixels with an index beside them (docs/records.md)."""
