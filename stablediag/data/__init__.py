"""Edit streams: one reader per layout of a dataset, and nothing else that knows field names."""

from stablediag.data.jsonl import read_jsonl, record_schema
from stablediag.data.load import dataset_info, load_stream

__all__ = ["dataset_info", "load_stream", "read_jsonl", "record_schema"]
