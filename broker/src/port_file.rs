//! Tells whoever started the broker where it listens, so that port 0 can be used.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// Writes the bound addresses as JSON. Whoever sees the file sees all of it.
pub(crate) fn write(path: &Path, listen: SocketAddr, http: Option<SocketAddr>) -> io::Result<()> {
    let http = http.map_or_else(|| "null".to_owned(), |address| format!("\"{address}\""));
    let text = format!("{{\"listen\":\"{listen}\",\"http\":{http}}}\n");
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}
