"""What the database must hold: definitions, what is there, the difference, and how it is made."""
