//! The cache over a store in memory: lists, watches, and their equivalence under random histories (FAULTS 43, 45, 46).
