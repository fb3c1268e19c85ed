//! The only program of an image made by tests: answers every request with what it sees of its container.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "fail") {
        eprintln!("asked to fail");
        std::process::exit(3);
    }
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let listener = TcpListener::bind(("0.0.0.0", variable("PORT").parse().expect("a port"))).expect("a listener");
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        let mut lines = BufReader::new(&connection).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        for _ in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {}
        let place = std::env::current_dir().map(|place| place.display().to_string()).unwrap_or_default();
        let own = std::fs::read_to_string("/etc/own").unwrap_or_default();
        let writes = std::fs::write("/var/made", "x").is_ok();
        let answer = format!(
            "{first}\narguments={arguments:?} target={} place={place} own={} writes={writes} host={}\n",
            variable("TARGET"),
            own.trim(),
            std::path::Path::new("/usr").exists(),
        );
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
        let _ = connection.write_all((head + &answer).as_bytes());
    }
}
