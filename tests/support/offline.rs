//! Tests that run without a network: the test binary starts itself again, for one test, in a network namespace of its own
//! whose only interface is loopback. The stand-in and the client both live in there, so neither can reach outside and
//! tests cannot meet each other's ports.
//!
//! A whole process is started, since a process with several threads, as the test runner is, may not enter a user
//! namespace, which an ordinary user needs to make a network namespace. `unshare` of util-linux does the entering.

use std::any::type_name;
use std::fs::{self, File, TryLockError};
use std::mem::size_of;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::client::{self, Installed};
use super::skip::skip;
use super::world::wait_for;

/// Set in the inner process: the network namespace of the outer one.
const OUTSIDE: &str = "CPW_TEST_OUTSIDE";
/// Set in the inner process where the test is for one client: its path.
const CLIENT: &str = "CPW_TEST_CLIENT";
/// A missing client, or a machine that permits no namespace, fails the test instead of skipping it.
const REQUIRE: &str = "CPW_REQUIRE_CLIENT";
/// How many tests may have a client at once: a client needs most of a core while it starts.
const SLOTS: usize = 2;

/// Runs `test` without a network.
pub(crate) fn offline<F: FnOnce()>(test: F) {
    if is_inside() {
        raise_loopback();
        test();
    } else if let Some(unshare) = unshare_or_skip(test_name::<F>()) {
        verify("", &rerun(unshare, test_name::<F>(), None));
    }
}

/// Runs `test` once for every client that is installed, without a network; at the same time, where slots are free.
pub(crate) fn on_each_client<F: FnOnce(&Installed)>(test: F) {
    if is_inside() {
        let path = std::env::var_os(CLIENT).expect("the outer process names the client");
        let installed = Installed::at(Path::new(&path)).expect("the client the outer process has found");
        let _slot = take_slot();
        raise_loopback();
        return test(&installed);
    }
    let name = test_name::<F>();
    let Some(unshare) = unshare_or_skip(name) else { return };
    let mut clients = Vec::new();
    for found in client::installed() {
        match found {
            Ok(client) => clients.push(client),
            Err(reason) => skip(name, &reason, REQUIRE),
        }
    }
    std::thread::scope(|scope| {
        let runs: Vec<_> = clients
            .iter()
            .map(|client| (client, scope.spawn(move || rerun(unshare, name, Some(&client.path)))))
            .collect();
        for (client, run) in runs {
            verify(&client.version, &run.join().expect("the inner process could be started"));
        }
    });
}

fn is_inside() -> bool {
    std::env::var_os(OUTSIDE).is_some()
}

/// The name of a test as the runner knows it, from the type of a closure in it: `crate::module::test::{{closure}}`.
fn test_name<F>() -> &'static str {
    let path = type_name::<F>();
    let path = path.split_once("::").map_or(path, |(_, rest)| rest);
    path.split("::{{closure}}").next().unwrap_or(path)
}

type Unshare = &'static [&'static str];

/// How to enter a namespace here; none, and a word about it, where that is not possible.
fn unshare_or_skip(name: &str) -> Option<Unshare> {
    // As an ordinary user one keeps one's own id, since the client treats root differently.
    const AS_ROOT: Unshare = &["--net"];
    const AS_USER: Unshare = &["--map-current-user", "--keep-caps", "--net"];
    let how = if nix::unistd::geteuid().is_root() { AS_ROOT } else { AS_USER };
    let reason = match Command::new("unshare").args(how).args(["--", "true"]).output() {
        Ok(output) if output.status.success() => return Some(how),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("unshare (util-linux): {error}"),
    };
    skip(name, &format!("no network namespace: {reason}"), REQUIRE);
    None
}

fn rerun(unshare: Unshare, name: &str, client: Option<&Path>) -> Output {
    let itself = std::env::current_exe().expect("the path of the test binary");
    let mut command = Command::new("unshare");
    command.args(unshare).arg("--").arg(itself).args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command.env(OUTSIDE, network_namespace()).stdin(Stdio::null());
    if let Some(client) = client {
        command.env(CLIENT, client);
    }
    command.output().expect("unshare was there a moment ago")
}

fn verify(version: &str, output: &Output) {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // A name that matches no test would pass otherwise.
    let passed = output.status.success() && stdout.contains("1 passed");
    assert!(passed, "{version} {}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", output.status);
    print!("{stdout}");
    eprint!("{stderr}");
}

/// The identity of this process's network namespace.
pub(crate) fn network_namespace() -> String {
    fs::read_link("/proc/self/ns/net").expect("/proc is mounted").display().to_string()
}

/// The identity of the namespace that the test runner lives in.
pub(crate) fn outer_network_namespace() -> String {
    std::env::var(OUTSIDE).expect("inside a test without network")
}

/// A new namespace has its loopback interface down; its index is always 1. Asks the kernel by netlink, so that no
/// further program is needed.
fn raise_loopback() {
    const HEADER: u32 = 16;
    const NEW_LINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const UP: u32 = 1;

    assert_ne!(network_namespace(), outer_network_namespace(), "this process is not in a namespace of its own");
    let mut message = Vec::new();
    message.extend((2 * HEADER).to_ne_bytes()); // struct nlmsghdr: length, type, flags, sequence, port
    message.extend(NEW_LINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]); // struct ifinfomsg: family, type, index, flags, mask of flags
    message.extend(1_u32.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());

    let route = SockProtocol::NetlinkRoute;
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, route).expect("a netlink socket");
    let number = socket.as_raw_fd();
    bind(number, &NetlinkAddr::new(0, 0)).expect("an address for it");
    send(number, &message, MsgFlags::empty()).expect("the request is sent");
    let mut reply = [0; 1024];
    let length = recv(number, &mut reply, MsgFlags::empty()).expect("the kernel's answer");
    let header = HEADER as usize;
    let error = reply[..length].get(header..header + size_of::<i32>()).expect("an error code, 0 for done");
    assert_eq!(error, [0; 4], "loopback could not be brought up");
}

/// Holds one of the machine's slots for tests with a client, across all test binaries.
fn take_slot() -> File {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let open = |slot| File::create(folder.join(format!("client-slot-{slot}"))).expect("a file below target");
    let slots: Vec<File> = (0..SLOTS).map(open).collect();
    let free = wait_for(Duration::from_mins(15), || {
        slots.iter().position(|slot| match slot.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => panic!("a slot could not be locked: {error}"),
        })
    });
    slots.into_iter().nth(free.expect("a free slot")).expect("it is one of them")
}
