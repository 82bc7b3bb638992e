//! AI-1 to AI-8 as far as text shows them, and the two rules that go with them: unsafe code and bounded channels.

use super::tree::{Finding, Tree};

/// Finds `words` in the product code under `folders`, except in the files and folders of `allowed`.
fn forbid(tree: &Tree, folders: &[&str], allowed: &[&str], words: &[&str], why: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, code) in tree.sources_in(folders) {
        if allowed.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        let code = code.for_product();
        for word in words {
            for line in code.find(word) {
                findings.push(Finding::new(path, line, format!("`{word}`: {why}")));
            }
        }
    }
    findings
}

const PURE: [&str; 2] = ["protocol/src/", "broker/core/src/"];

/// AI-1: `protocol` and `broker/core` contain no `async`, no clock, no randomness, no file, no socket.
pub(crate) fn pure_crates(tree: &Tree) -> Vec<Finding> {
    let words = [
        "async",
        ".await",
        "tokio",
        "Instant::now",
        "SystemTime",
        "std::fs",
        "std::net",
        "std::env",
        "std::thread",
        "std::process",
        "rand::",
        "getrandom",
        "RandomState",
        "File::",
        "TcpStream",
        "println!",
        "eprintln!",
    ];
    forbid(tree, &PURE, &[], &words, "protocol and broker/core are pure")
}

/// AI-2: only `broker/src/storage` opens data files, and `tools/src/log.rs`, read-only.
pub(crate) fn files(tree: &Tree) -> Vec<Finding> {
    let opening =
        ["std::fs", "fs::File", "File::open", "File::create", "OpenOptions", "tokio::fs", "memmap2", "Mmap"];
    let allowed = [
        "broker/src/storage/",
        // These read or write files that hold no records: configuration, and the addresses for whoever started the broker.
        "broker/src/config.rs",
        "broker/src/config/",
        "broker/src/port_file.rs",
    ];
    let why = "only broker/src/storage opens data files";
    let mut findings = forbid(tree, &["broker/src/", "client/src/"], &allowed, &opening, why);
    let writing =
        ["File::create", "OpenOptions", "fs::write", "fs::remove_file", "fs::rename", "set_len", "MmapMut"];
    let why = "the offline tools only read a data directory";
    findings.extend(forbid(tree, &["tools/src/log"], &[], &writing, why));
    findings
}

/// AI-2: only `broker/src/server`, the HTTP listener, `client/src/wire` and the bench's questions over HTTP open sockets.
pub(crate) fn sockets(tree: &Tree) -> Vec<Finding> {
    let words = ["TcpListener", "TcpStream", "TcpSocket", "UdpSocket", "UnixStream", "UnixListener"];
    // The bench asks a broker for its health and its metrics.
    let allowed =
        ["broker/src/server/", "broker/src/observe/http.rs", "client/src/wire/", "tools/src/bench/http.rs"];
    let why = "sockets are opened in broker/src/server, broker/src/observe/http.rs, client/src/wire and \
               tools/src/bench/http.rs only";
    forbid(tree, &["broker/src/", "client/src/", "tools/src/"], &allowed, &words, why)
}

/// AI-3: only `broker/src/controller` names openraft.
pub(crate) fn openraft(tree: &Tree) -> Vec<Finding> {
    forbid(
        tree,
        &[""],
        &["broker/src/controller/", "tests/tests/tidy/"],
        &["openraft"],
        "only broker/src/controller",
    )
}

/// AI-4: `broker/src/api` decodes, authorises, calls a handle and encodes.
pub(crate) fn api_without_decisions(tree: &Tree) -> Vec<Finding> {
    let words =
        ["storage::Log", "Store", "Mutex", "RwLock", "tokio::spawn", "FileSystem", "replica::step", ".step("];
    let mut findings = forbid(tree, &["broker/src/api/"], &[], &words, "an api handler calls a handle");
    for (path, code) in tree.sources_in(&["broker/src/api/"]) {
        if path.ends_with("/mod.rs") {
            continue;
        }
        if code.for_product().find("Principal").next().is_none() {
            findings.push(Finding::new(path, 0, "no `Principal`: every handler is told who asks"));
        }
    }
    findings
}

/// AI-5: a partition's state has exactly one owner task.
pub(crate) fn one_owner(tree: &Tree) -> Vec<Finding> {
    let locks = ["Mutex", "RwLock", "RefCell", "UnsafeCell"];
    // Not the state of a partition: the map of all of them, what they have in common, the mailbox of one, and the answers
    // of a request to several.
    let allowed = [
        "broker/src/partition/manager.rs",
        "broker/src/partition/services.rs",
        "broker/src/partition/mailbox.rs",
        // The cell for the acknowledgements of one follower.
        "broker/src/partition/sessions.rs",
        "broker/src/partition/handle.rs",
        "broker/src/partition/ticket.rs",
    ];
    let why = "a partition's state has one owner task and no lock";
    forbid(tree, &["broker/src/partition/", "broker/core/src/replica/"], &allowed, &locks, why)
}

/// AI-6: the data plane never waits for raft.
pub(crate) fn data_plane_without_raft(tree: &Tree) -> Vec<Finding> {
    let data_plane = [
        "broker/src/partition/",
        "broker/src/server/",
        "broker/src/api/produce.rs",
        "broker/src/api/subscribe.rs",
        "broker/src/api/read.rs",
        "broker/src/api/list_offsets.rs",
    ];
    // Proposes in a task of its own, and tells the partition when it is done.
    let allowed = ["broker/src/partition/services.rs"];
    let why = "the data plane reads the last cluster image and waits for nothing";
    forbid(tree, &data_plane, &allowed, &[".propose("], why)
}

/// AI-7: `client` does not know `broker`; the broker uses only `client::wire`.
pub(crate) fn client_and_broker(tree: &Tree) -> Vec<Finding> {
    let words = ["highwater_broker", "highwater_broker_core"];
    let mut findings = forbid(tree, &["client/"], &[], &words, "the client does not know the broker");
    for (path, code) in tree.sources_in(&["broker/src/", "broker/core/src/"]) {
        for (number, line) in code.for_product().lines() {
            let beyond = line.split("highwater_client").skip(1).any(|rest| !rest.starts_with("::wire"));
            if beyond {
                findings.push(Finding::new(path, number, "the broker uses only highwater_client::wire"));
            }
        }
    }
    findings
}

/// AI-8: nothing global but the tracing subscriber.
pub(crate) fn nothing_global(tree: &Tree) -> Vec<Finding> {
    let folders = ["protocol/src/", "broker/", "client/src/"];
    let mut findings =
        forbid(tree, &folders, &["broker/tests/"], &["thread_local!", "static mut"], "nothing global");
    let cells = [
        "Atomic", "Mutex", "RwLock", "OnceLock", "OnceCell", "LazyLock", "LazyCell", "ArcSwap", "Cell<",
        "Registry",
    ];
    for (path, code) in tree.sources_in(&folders) {
        if path.starts_with("broker/tests/") {
            continue;
        }
        for (number, line) in code.for_product().lines() {
            let declared = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            if declared.starts_with("static ") && cells.iter().any(|cell| line.contains(cell)) {
                let what = "a `static` that changes: two brokers live in one process";
                findings.push(Finding::new(path, number, what));
            }
        }
    }
    findings
}

/// Unsafe code lives in `broker/src/storage`, and says why it is sound.
pub(crate) fn unsafe_code(tree: &Tree) -> Vec<Finding> {
    let allowed = [
        "broker/src/storage/",
        // An allocator that counts is an unsafe trait.
        "protocol/tests/counting_allocator/mod.rs",
    ];
    let mut findings = Vec::new();
    for (path, code) in tree.sources() {
        for number in code.find("unsafe") {
            if !allowed.iter().any(|allowed| path.starts_with(allowed)) {
                findings.push(Finding::new(path, number, "`unsafe` outside broker/src/storage"));
            } else if !says_why(tree, path, number) {
                findings.push(Finding::new(path, number, "`unsafe` without a `// SAFETY:` comment above it"));
            }
        }
    }
    findings
}

/// Whether a SAFETY comment (or, on an `unsafe fn`, a `# Safety` section) stands in the lines above.
fn says_why(tree: &Tree, path: &str, number: usize) -> bool {
    let text = tree.text(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().take(number).collect();
    let is_declaration = lines.last().is_some_and(|line| line.contains("unsafe fn"));
    let above = lines.iter().rev().take(12);
    is_declaration || above.into_iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
}

/// Every channel is bounded.
pub(crate) fn bounded_channels(tree: &Tree) -> Vec<Finding> {
    let folders = ["protocol/src/", "broker/", "client/src/", "tools/src/"];
    let words = [
        "unbounded_channel",
        "UnboundedSender",
        "UnboundedReceiver",
        "std::sync::mpsc::channel",
        "mpsc::unbounded",
    ];
    forbid(tree, &folders, &[], &words, "every channel is bounded")
}
