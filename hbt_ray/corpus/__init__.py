"""Parallel QA data at rest: aligned shards, importers, the embedded sample."""
