"""Readers of data files: lines, JSON lines, CSV and TSV tables, documents, relevance judgements (qrels)."""
