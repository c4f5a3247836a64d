//! A terminal that can be taken away.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

/// A terminal: the side of who shows it, which nobody else gets, and the side of programs.
pub(crate) fn terminal() -> (File, File) {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a terminal");
    grantpt(&master).expect("a terminal of ours");
    unlockpt(&master).expect("a terminal of ours");
    let mut slave = OpenOptions::new();
    slave.read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits());
    let slave = slave.open(ptsname_r(&master).expect("its name")).expect("its other side");
    (File::from(std::os::fd::OwnedFd::from(master)), slave)
}
