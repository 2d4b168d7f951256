//! What each request used, durably: SQLite.
