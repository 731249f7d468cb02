//! Who may do what and who hears of it: rights, secrets, TLS, and bytes that mean harm. One program, whose tests run side by side.

// The longest first: tests begin in the order of their names.
#[path = "tls.rs"]
mod encryption;
#[path = "hostile.rs"]
mod hostile;
#[path = "least_privilege.rs"]
mod least_privilege;
#[path = "secrets.rs"]
mod secrets;
