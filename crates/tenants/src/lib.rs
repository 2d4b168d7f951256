//! sconce.toml: who the tenants are, their keys and limits.
