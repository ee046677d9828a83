//! The product as its users meet it: the built binary, real microVMs on QEMU, nothing faked. Each test has a server of
//! its own with its own data folder, and checks at its end that nothing of it is left on the machine.

mod harness;

mod start;
