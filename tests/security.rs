//! Who may do what and who hears of it: rights, secrets, TLS, and bytes that mean harm. One program, whose tests run side by side.

#[path = "hostile.rs"]
mod hostile;
#[path = "least_privilege.rs"]
mod least_privilege;
#[path = "secrets.rs"]
mod secrets;
#[path = "tls.rs"]
mod tls;
