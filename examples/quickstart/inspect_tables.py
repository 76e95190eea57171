"""The same memories and threads as rows: all that the agent knows can be read with SQL."""

from agent import store
from rich.console import Console
from rich.table import Table

QUERIES = {
    "store": "SELECT prefix, key, value, updated_at FROM store ORDER BY updated_at, key",
    "store_vectors": """
        SELECT prefix, key, field_name, vector_dims(embedding) AS dims,
               left(embedding::text, 40) || '…' AS embedding
        FROM store_vectors ORDER BY updated_at, key
    """,
    "checkpoints": """
        SELECT thread_id, checkpoint_id, metadata ->> 'step' AS step,
               checkpoint ->> 'ts' AS stored_at
        FROM checkpoints ORDER BY checkpoint_id
    """,
}

console = Console(width=150)
with store, store.connection() as conn, conn.cursor() as cursor:
    for name, query in QUERIES.items():
        cursor.execute(query)
        table = Table(*(column.name for column in cursor.description or ()), title=name)
        for row in cursor:
            table.add_row(*(str(cell) for cell in row))
        console.print(table)
