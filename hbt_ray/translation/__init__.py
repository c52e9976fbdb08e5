"""Translate the texts of a dataset into further languages: complete, checked, resumable parallel shards."""
