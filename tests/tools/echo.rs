//! The only program of an image made by tests: says who answers, and what was asked. It knows nothing of leaving in good
//! order: at SIGTERM it is gone, with whatever it was doing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

unsafe extern "C" {
    fn signal(number: i32, action: extern "C" fn(i32)) -> usize;
    fn _exit(code: i32) -> !;
}

const SIGTERM: i32 = 15;

extern "C" fn end(_: i32) {
    // SAFETY: it takes nothing, and does not come back.
    unsafe { _exit(0) }
}

fn main() {
    // SAFETY: the action does nothing but what a signal's action may do. The first process of a process namespace ignores
    // the signals that it has no action for.
    unsafe { signal(SIGTERM, end) };
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let listener = TcpListener::bind(("0.0.0.0", variable("PORT").parse().expect("a port"))).expect("a listener");
    let name: &'static str = Box::leak(format!("{} {}", variable("K_SERVICE"), variable("VERSION")).into_boxed_str());
    for connection in listener.incoming().flatten() {
        std::thread::spawn(move || serve(connection, name));
    }
}

/// One request after the other, until the client has no more.
fn serve(connection: TcpStream, name: &str) -> Option<()> {
    connection.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(&connection);
    loop {
        let first = line(&mut reader).filter(|line| !line.is_empty())?;
        let mut length = 0;
        while let Some(header) = line(&mut reader).filter(|line| !line.is_empty()) {
            if let Some((name, value)) = header.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
                length = value.trim().parse().unwrap_or_else(|_| panic!("{name} is no number"));
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let target = first.rsplit_once(' ')?.0;
        if let Some((_, pause)) = target.split_once("pause=") {
            std::thread::sleep(Duration::from_millis(pause.parse().ok()?));
        }
        let answer = format!("{name} {target} {}", String::from_utf8_lossy(&body));
        // In one piece: what is not there whole is not there at all.
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        (&connection).write_all(answer.as_bytes()).ok()?;
    }
}

fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    Some(line.trim_end().to_owned())
}
