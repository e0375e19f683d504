"""The small corpus and its store; a bucket of a real S3 server."""

from corpus_fixtures import corpus, store, store_path  # noqa: F401
from s3_server import bucket, s3_port  # noqa: F401
