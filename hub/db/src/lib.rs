//! What the hub keeps: SQLite or PostgreSQL behind one interface.
