//! The command line, tested from outside: the real binary, its output, its exit codes.
#![cfg(test)]

mod groups;
mod harness;

mod bench;
mod bench_shapes;
mod bench_steps;
mod cluster;
mod help;
mod logs;
mod quickstart;
mod readme;
mod records;
mod topics;
