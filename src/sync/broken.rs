//! Variants of the library that are broken on purpose: each must be caught by the suite that `cargo xtask schedules
//! --list-broken` names, for a suite that passes on a broken library proves nothing about the whole one. There is one for
//! each rule of the claims' protocol that a line of code keeps, and for what the driver must never leave out.
//!
//! Only a build with `--cfg broken` has them, all in one, and there the variable `BROKEN` chooses. In every other build
//! `broken!` is the literal `false`.

#[cfg(all(broken, not(loom)))]
compile_error!("`--cfg broken` goes with `--cfg loom`: `cargo xtask schedules --broken NAME`");

/// Whether what runs is the broken variant of this name.
#[cfg(not(broken))]
macro_rules! broken {
    ($name:literal) => {
        false
    };
}

/// Whether what runs is the broken variant of this name.
#[cfg(broken)]
macro_rules! broken {
    ($name:literal) => {
        *$crate::sync::broken::CHOSEN == $name
    };
}

#[cfg(all(broken, loom))]
pub(crate) static CHOSEN: std::sync::LazyLock<std::string::String> =
    std::sync::LazyLock::new(|| std::env::var("BROKEN").unwrap_or_default());

pub(crate) use broken;
