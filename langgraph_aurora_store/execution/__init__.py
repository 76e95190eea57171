"""Flows performed on connections: operations, executors, and what runs beside them."""
