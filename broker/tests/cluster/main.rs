//! Several brokers in this process as one cluster: how it comes to be, who is the controller, who is fenced, and which
//! starts are refused.
#![cfg(test)]

mod support;

mod life;
mod wrong_starts;
