//! A sink for one process: JSON lines in a file.
