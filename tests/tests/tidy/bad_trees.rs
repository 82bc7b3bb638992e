//! For each check, trees that break its rule; and one tree that comes close to breaking all of them.

use super::tree::Tree;

/// Why each tree is bad, and the tree.
pub(crate) fn of(check: &str) -> Vec<(&'static str, Tree)> {
    let one = |path: &'static str, text: &'static str| vec![(text, Tree::default().with(path, text))];
    let many = |cases: &[(&'static str, &str)]| {
        cases.iter().map(|(path, text)| (*path, Tree::default().with(path, text))).collect()
    };
    match check {
        "AI-1 pure crates" => many(&[
            ("protocol/src/frame.rs", "pub async fn read() {}"),
            ("protocol/src/ids.rs", "fn now() { let t = std::time::Instant::now(); }"),
            ("broker/core/src/replica/mod.rs", "use std::fs;"),
            ("broker/core/src/time.rs", "fn f() { tokio::spawn(g()); }"),
        ]),
        "AI-2 files" => many(&[
            ("broker/src/partition/worker.rs", "fn f() { std::fs::File::open(p); }"),
            ("broker/src/api/read.rs", "use memmap2::Mmap;"),
            ("tools/src/log.rs", "fn f() { File::create(p); }"),
        ]),
        "AI-2 sockets" => many(&[
            ("broker/src/api/produce.rs", "use tokio::net::TcpStream;"),
            ("client/src/producer/mod.rs", "fn f(s: TcpStream) {}"),
            ("tools/src/produce.rs", "use std::net::TcpListener;"),
        ]),
        "AI-3 openraft" => one("broker/src/server/mod.rs", "use openraft::Raft;"),
        "AI-4 api without decisions" => many(&[
            ("broker/src/api/produce.rs", "fn f(_: Principal, log: &Mutex<u8>) {}"),
            ("broker/src/api/read.rs", "pub fn handle(request: ReadRequest) {}"),
        ]),
        "AI-5 one owner" => one("broker/src/partition/worker.rs", "struct Shared(Arc<Mutex<State>>);"),
        "AI-6 data plane without raft" => {
            one("broker/src/partition/worker.rs", "async fn f(s: S) { s.propose(c).await; }")
        }
        "AI-7 client and broker" => many(&[
            ("client/src/lib.rs", "use highwater_broker_core::time::Mono;"),
            ("broker/src/lib.rs", "use highwater_client::Client;"),
        ]),
        "AI-8 nothing global" => many(&[
            ("broker/src/observe/metrics.rs", "static COUNT: AtomicU64 = AtomicU64::new(0);"),
            ("client/src/lib.rs", "pub(crate) static POOL: OnceLock<Pool> = OnceLock::new();"),
            ("protocol/src/lib.rs", "thread_local! { static X: u8 = 0; }"),
        ]),
        "unsafe" => many(&[
            ("client/src/lib.rs", "fn f() { unsafe { g() } }"),
            ("broker/src/storage/real/mapping.rs", "fn f() { unsafe { g() } }"),
        ]),
        "bounded channels" => {
            one("broker/src/server/outbox.rs", "fn f() { let (a, b) = mpsc::unbounded_channel(); }")
        }
        _ => of_manifests_and_words(check),
    }
}

fn of_manifests_and_words(check: &str) -> Vec<(&'static str, Tree)> {
    let one = |path: &'static str, text: &'static str| vec![(text, Tree::default().with(path, text))];
    match check {
        "dependency edges" => vec![
            ("client on broker", package("client", "highwater-broker.workspace = true")),
            ("core on client", package("broker/core", "highwater-client.workspace = true")),
            ("unknown package", package("plugins", "bytes.workspace = true")),
        ],
        "given packages" => vec![
            ("missing", package("tools", "tokio.workspace = true")),
            ("not used", package("protocol", "bytes.workspace = true\ncrc32fast.workspace = true")),
        ],
        "pure manifests" => vec![
            ("tokio in core", package("broker/core", "tokio.workspace = true")),
            ("randomness", package("protocol", "rand.workspace = true")),
        ],
        "workspace settings" => {
            vec![
                ("own version", package("client", "bytes = \"1\"")),
                ("no lints", {
                    Tree::default()
                        .with("client/Cargo.toml", "[package]\nname = \"c\"\nversion.workspace = true\n")
                }),
            ]
        }
        "clippy files" => vec![
            ("no file at all", Tree::default()),
            ("not repeated", near_misses().with("protocol/clippy.toml", "disallowed-methods = []")),
        ],
        "file sizes" => vec![("601 lines", Tree::default().with("client/src/lib.rs", &"//\n".repeat(601)))],
        "function sizes" => {
            let long = format!("fn long() {{\n{}}}\n", "    step();\n".repeat(70));
            vec![("72 lines", Tree::default().with("client/src/lib.rs", &long))]
        }
        "markers" => {
            let note = concat!("// FIX", "ME: later\n");
            let mut all = one("tools/src/main.rs", "fn f() { todo!() }");
            all.extend(one("tests/tests/smoke.rs", "#[test]\n#[ignore]\nfn f() {}"));
            all.push(("a note", Tree::default().with("docs/wire.md", note)));
            all
        }
        "sleeps in tests" => {
            let mut all = one("tests/tests/smoke.rs", "fn f() { std::thread::sleep(d); }");
            all.extend(one(
                "client/src/lib.rs",
                "#[cfg(test)]\nmod tests { async fn f() { tokio::time::sleep(d).await } }",
            ));
            all
        }
        "module names" => one("client/src/utils.rs", ""),
        "places of this machine" => {
            vec![("a path", Tree::default().with("README.md", concat!("cd /wo", "rk/main\n")))]
        }
        other => panic!("no bad tree for {other}"),
    }
}

/// A package that is in order, but for its dependencies.
fn package(folder: &str, dependencies: &str) -> Tree {
    let inherited = ["version", "edition", "rust-version", "license", "publish"]
        .map(|key| format!("{key}.workspace = true\n"))
        .concat();
    let text = format!(
        "[package]\nname = \"p\"\n{inherited}\n[dependencies]\n{dependencies}\n\n[lints]\nworkspace = true\n"
    );
    Tree::default().with(&format!("{folder}/Cargo.toml"), &text)
}

/// Everything here is allowed, though it looks like what is not.
pub(crate) fn near_misses() -> Tree {
    let clippy = "allow-unwrap-in-tests = true\ndisallowed-methods = [{ path = \"a::b\" }, { path = \"std::time::Instant::now\" }]";
    package("client", "bytes.workspace = true\ntokio.workspace = true\ntracing.workspace = true\ntokio-util.workspace = true")
        .with("client/src/lib.rs", "use bytes::Bytes;\nuse tokio::sync;\nuse tracing::warn;\nuse tokio_util::codec;\nfn f() { tokio::time::sleep(d); }\n")
        .with("clippy.toml", clippy)
        .with("protocol/clippy.toml", clippy)
        .with("broker/core/clippy.toml", clippy)
        .with("protocol/src/frame.rs", "// no async here\nconst A: &str = \"std::fs tokio\";\n#[cfg(test)]\nmod tests { use std::fs; }\n")
        .with("broker/src/storage/real/file.rs", "use std::fs;\n// SAFETY: the length was checked.\nfn f() { unsafe { g() } }\n")
        .with("broker/src/api/read.rs", "fn handle(principal: &Principal) { handle.read() }\n")
        .with("broker/src/partition/worker.rs", "// a Mutex would be wrong\nfn stepping() { machine.step(now, input, out) }\n")
        .with("broker/src/server/listener.rs", "use tokio::net::TcpListener;\nstatic NAME: &str = \"x\";\n")
        .with("broker/src/lib.rs", "use highwater_client::wire::Connection;\n")
        .with("tests/src/wait.rs", "pub fn until() { std::thread::sleep(STEP); }\n")
        .with("tests/tests/words.rs", "const A: &str = \"todo!()\";\nfn ignored() { asleep(); }\n")
        .with("docs/notes.md", "a todo list, xxx\n")
}
