//! The Executor for real models.
