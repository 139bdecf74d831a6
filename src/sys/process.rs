//! See the head of each file.
