//! The scheduler in virtual time, driven by traces.
