//! End to end: a real `dhow up`, its own command line, kubectl, and plain sockets. One module per part of the product;
//! each test names the promise that it holds.

mod backup;
mod bad_input;
mod burst;
mod cli;
mod clients;
mod containers;
mod crash;
mod definitions;
mod differential;
mod domains;
mod faults;
mod function;
mod gateway;
mod harness;
mod hostile;
mod interrupted;
mod kubectl;
mod lossless;
mod outside;
mod permissions;
mod plain;
mod sandbox;
mod streams;
mod upgrade;
