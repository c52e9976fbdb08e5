"""Models at work: texts of Parquet files to vectors, and passages searched by a person."""
