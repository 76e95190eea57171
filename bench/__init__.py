"""Measurements of this store beside LangGraph's PostgresStore and plain psycopg, in one run."""
