"""From shards in object storage to decoded rows, and from explained rows to Parquet."""
